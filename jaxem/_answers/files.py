"""A model and its fit in a file, and back: arrays by name, and in JSON what they belong to. Nothing is pickled.

The file is NumPy's `.npz`: an array for each entry of θ, `theta/mu`, and for each other field of the `Fit`, and one
of UTF-8 text, `description`, with the model's name and what is held, the columns, the versions and the time.
"""

import contextlib
import datetime
import json
import platform
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro

from jaxem._core.arrays import numbers
from jaxem._core.columns import Named
from jaxem._core.model import Model
from jaxem._core.tracing import is_concrete
from jaxem._fit import checkpoint
from jaxem._fit.loop import Fit
from jaxem._fit.names import description, family
from jaxem._programs.program import Program
from jaxem._version import __version__
from jaxem.families import gaussian
from jaxem.families._mixture import Mixture
from jaxem.families.gaussian._prior import with_conjugate

FORMAT = "jaxem fit 1"


def save(path: Any, m: Any, fit: Any) -> None:
    """Write a model and its fit to one `.npz` file, whole or not at all.

    A family is written by its name, with what is held, its floor or prior, and noise; a program, or a mixture of your
    own, by the name of its function, and is passed to `load`. No suffix is added to the path.

    Args:
        path: the file; one that is there is replaced.
        m: the model.
        fit: its fit, of one start or with lanes. θ may hold dicts of arrays.

    Raises:
        ValueError: for a path that is no file's, a fit that is traced, or an entry of θ that is no dict of arrays.
        OSError: when the file cannot be written; what was there still is.

    >>> import jax.numpy as jnp, jaxem, tempfile, os
    >>> from jaxem.families import gaussian
    >>> m, theta = gaussian.isotropic.hold("pi"), {"pi": jnp.ones(1), "mu": jnp.zeros((1, 1)), "sigma": 1.0}
    >>> fit = jaxem.em(m, theta, jnp.array([0.0, 2.0]))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     jaxem.save(os.path.join(folder, "fit.npz"), m, fit)
    ...     again, loaded = jaxem.load(os.path.join(folder, "fit.npz"))
    >>> again == m, bool(loaded.free_energy == fit.free_energy), loaded.theta["mu"].tolist()
    (True, True, [[1.0]])
    """
    where = checkpoint.path_of("path", path)
    if not isinstance(m, Model):
        raise ValueError(f"m: must be the model that was fitted, got {type(m).__name__}; save(path, m, fit)")
    if not isinstance(fit, Fit):
        raise ValueError(f"fit: must be a Fit, as of jaxem.em, got {type(fit).__name__}; save(path, m, fit)")
    if not is_concrete(fit):
        raise ValueError("fit: is traced; save it outside jit and vmap")
    if why := checkpoint.obstacle(where):
        raise ValueError(f"path: {where} {why}")
    arrays = {f"theta/{name}": value for name, value in _flat(fit.theta).items()}
    rest = {name: value for name, value in fit._asdict().items() if name != "theta" and value is not None}
    arrays |= {name: np.asarray(value) for name, value in rest.items()}
    versions = {"jaxem": __version__, "jax": jax.__version__, "numpyro": numpyro.__version__, "numpy": np.__version__}
    said = {
        "format": FORMAT,
        "model": _described(m),
        "columns": getattr(fit.theta, "columns", None),
        "saved": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": versions | {"python": platform.python_version()},
    }
    checkpoint.write(where, arrays, said, what="path")


def load(path: Any, m: Any = None) -> tuple[Model, Fit]:
    """The model and the fit that `save` wrote.

    Args:
        path: the file.
        m: the model where the file only names it: a program, or a mixture of your own; it must be the one that was
            saved, as far as names tell. Of a family it is left out.

    Raises:
        ValueError: for a file that is missing, damaged or no fit's, one whose model has to be passed, and a model
            that is not the file's.

    >>> import jax.numpy as jnp, jaxem, tempfile, os
    >>> from jaxem.families import gaussian
    >>> fit = jaxem.kmeans(jnp.array([0.0, 2.0, 9.0]), jnp.array([[0.0], [9.0]]))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     jaxem.save(os.path.join(folder, "kmeans.npz"), gaussian.isotropic, fit)
    ...     m, fit = jaxem.load(os.path.join(folder, "kmeans.npz"))
    >>> m, fit.theta["mu"].tolist()
    (gaussian.isotropic, [[1.0], [9.0]])
    """
    where = checkpoint.path_of("path", path)
    said, arrays = _read(where)
    theta: dict[str, Any] = {}
    for name in [name for name in arrays if name.startswith("theta/")]:
        *folders, last = name.split("/")[1:]
        inner = theta
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[last] = numbers("path", arrays.pop(name), rows=True)
    columns = said.get("columns")
    known = {name: jnp.asarray(value) for name, value in arrays.items() if name in Fit._fields}
    fit = Fit(Named(theta, tuple(columns)) if columns else theta, **known)
    return _model(where, said["model"], m), fit


def _flat(theta: Any, above: str = "") -> dict[str, np.ndarray]:
    """θ's arrays by the path of names that leads to each."""
    found: dict[str, np.ndarray] = {}
    for name, value in theta.items():
        if not isinstance(name, str) or "/" in name:
            raise ValueError(f"fit: θ has an entry named {name!r}; only names without a / can be saved")
        if isinstance(value, dict):
            found |= _flat(value, f"{above}{name}/")
        elif len(leaves := jax.tree.leaves(value)) == 1 and leaves[0] is value:
            found[f"{above}{name}"] = np.asarray(value)
        else:
            raise ValueError(f"fit: θ[{name!r}] is a {type(value).__name__}; only dicts of arrays can be saved")
    return found


def _described(m: Any) -> Any:
    """The model in JSON's terms, as JSON gives it back."""
    return json.loads(json.dumps({"kind": type(m).__name__, "is": description(m)}))


def _read(where: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    try:
        with np.load(where) as stored:
            damaged = stored.zip.testzip()
            said = json.loads(bytes(stored["description"]))
            arrays = {name: stored[name] for name in stored.files if name != "description"}
        if damaged or not isinstance(said, dict) or said.get("format") != FORMAT:
            raise ValueError(damaged)
        return said, arrays
    except FileNotFoundError:
        raise ValueError(f"path: there is no {where}; jaxem.save writes one") from None
    except Exception as error:  # damage shows itself in many ways
        raise ValueError(f"path: {where} is no file of jaxem.save, or only a part of one; use another") from error


def _model(where: Path, described: Any, m: Any) -> Model:
    """The model of a file: the one that is passed, or the family that is named, and it must be as described."""
    if m is None:
        m = _of_family(described["is"])
        if m is None or _described(m) != described:
            what = "a program" if described["kind"] == Program.__name__ else "a mixture of your own"
            raise ValueError(f"m: {where} holds a fit of {what}, {_shown(described['is'])}; pass it, load(path, m)")
        return m
    if not isinstance(m, Model):
        raise ValueError(f"m: must be the model that was saved, got {type(m).__name__}")
    if _described(m) != described:
        raise ValueError(f"m: {where} holds a fit of {_shown(described['is'])}, not of {_shown(_described(m)['is'])}")
    return m


def _of_family(described: Any) -> Mixture | None:
    """The family of this name, with its prior, noise, floor and what is held; None where there is none."""
    if not isinstance(described, dict):
        return None
    m = family(described.get("family", ""))
    with contextlib.suppress(KeyError, TypeError, IndexError, ValueError):
        if m is None:
            _, ((_, noisy),), _ = described["update"]
            m = _of_family(noisy["m"])
            m = m and gaussian.with_noise(m, noisy["volume"])
        elif "prior" in described:
            m = with_conjugate(m, described["update"][1]["prior"][1])
        else:
            m = gaussian.with_floor(m, described["update"][1]["variance"])
    with contextlib.suppress(KeyError, TypeError, ValueError):
        return m and m.hold(*described["held"])
    return None


def _shown(described: Any) -> str:
    return f"{' '.join(json.dumps(described, ensure_ascii=False).split()):.160}"
