"""What NumPyro's messages need before a program is read: two handlers, each for something that sites share unawares."""

from typing import Any

from numpyro.primitives import Messenger

FUNCTIONS = {"scan_wrapper": (0,), "cond_wrapper": (1, 2)}  # where the functions are among their arguments


class Own(Messenger):
    """Each site's own `infer` dict, and a latent's `sample_shape` as a part of its batch.

    NumPyro's handlers write into the `infer` that the program gave, which several sites may share; and enumeration
    forgets a `sample_shape` that no plate has taken. Innermost, inside a scan and a branch too.
    """

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "control_flow":
            functions = FUNCTIONS.get(msg["fn"].__name__, ())
            msg["args"] = tuple(Own(arg) if i in functions else arg for i, arg in enumerate(msg["args"]))
        if msg["type"] != "sample":
            return
        msg["infer"] = dict(msg["infer"])
        shape = msg["kwargs"].get("sample_shape", ())
        if shape and msg["value"] is None:
            msg["fn"] = msg["fn"].expand(tuple(shape) + msg["fn"].batch_shape)
            msg["kwargs"]["sample_shape"] = ()


class Freed(Messenger):
    """Gives back the dimension that a batch without a plate took: a plate that comes later may lie there.

    Inside of `funsor.trace`, which asks for a name for each of a site's dimensions and keeps it for ever.
    """

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        from numpyro.contrib.funsor.enum_messenger import _DIM_STACK

        if msg["type"] == "sample":
            frame = _DIM_STACK.current_frame
            for name, dim in list(frame.name_to_dim.items()):
                if name.startswith("_pyro_dim_"):
                    frame.free(name, dim)
