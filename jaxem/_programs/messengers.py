"""What NumPyro's messages need before a program is read, or run: handlers that reach into scans and branches."""

from typing import Any

from numpyro.distributions import Unit
from numpyro.primitives import Messenger

FUNCTIONS = {"scan_wrapper": (0,), "cond_wrapper": (1, 2)}  # where the functions are among their arguments


def inside(handler: type[Messenger], msg: dict[str, Any]) -> None:
    """The same handler for what a scan or a branch runs."""
    if msg["type"] == "control_flow":
        functions = FUNCTIONS.get(msg["fn"].__name__, ())
        msg["args"] = tuple(handler(arg) if i in functions else arg for i, arg in enumerate(msg["args"]))


class Unobserved(Messenger):
    """Forgets what was observed, so that it is drawn; `numpyro.factor`, which has no draws, stays. Innermost."""

    def process_message(self, msg: dict[str, Any]) -> None:
        inside(Unobserved, msg)
        if msg["type"] == "sample" and msg["is_observed"] and not isinstance(msg["fn"], Unit):
            msg["is_observed"], msg["value"] = False, None


class Own(Messenger):
    """Each site's own `infer` dict, and a latent's `sample_shape` as a part of its batch.

    NumPyro's handlers write into the `infer` that the program gave, which several sites may share; and enumeration
    forgets a `sample_shape` that no plate has taken. Innermost, inside a scan and a branch too.
    """

    def process_message(self, msg: dict[str, Any]) -> None:
        inside(Own, msg)
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
