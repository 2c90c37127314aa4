"""From whatever a user passes to numbers that JAX can take, or one ValueError: the argument, what it got, the remedy.

No value is lost on the way: masks, gaps, imaginary parts, digits beyond int32 and magnitudes beyond float32 are refused
by name. What is checked here is known without reading an array that JAX holds; values inside a user's `jit` are not.
"""

import sys
import warnings
from collections.abc import Iterable
from numbers import Real
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from jaxem._core.tracing import is_concrete, is_traced

GAPS = "drop or impute them, or pass missing=True to the fit of a mixture"
LARGEST_STEPS = np.iinfo(np.int32).max  # more steps than anyone makes
ENABLE_X64 = "jax.config.update('jax_enable_x64', True)"
PACKAGE = str(Path(__file__).parents[1])  # where the files of jaxem are


def numbers(name: str, value: Any, dtype: Any = None, *, counts: np.ndarray | None = None, rows: bool = False) -> Array:
    """An array of real numbers, in the precision `dtype` if one is given.

    `counts`: of the rows, which count; what others hold is not looked at. `rows`: are they data, whose digits matter,
    so that it warns where JAX has no float64 for them?
    """
    array = raw(name, value, counts)
    if not isinstance(array, np.ndarray):
        return array if dtype is None or array.dtype == dtype else array.astype(dtype)
    wanted = jax.dtypes.canonicalize_dtype(array.dtype if dtype is None else dtype)
    if rows and array.dtype == np.float64 and wanted == np.float32 and not isinstance(value, list | tuple | float):
        warn(
            f"{name}: float64 becomes float32, in which 8 digits are left of 16, because JAX's x64 is off: enable it, "
            f"{ENABLE_X64}, or pass float32"
        )
    array = fitted(name, array, wanted)
    return jnp.asarray(value if dtype is None and type(value) is float else array)  # JAX's weak type stays


def raw(name: str, value: Any, counts: np.ndarray | None = None) -> Array | np.ndarray:
    """The same as NumPy or JAX holds it: at least 32 bits where it is floating, at most 64, in this machine's order."""
    if isinstance(value, list | tuple):
        value = joined(name, value)
    if isinstance(value, jax.Array):
        return _of_jax(name, value)
    if isinstance(value, np.ma.MaskedArray):
        blame_rows(name, np.ma.getmaskarray(value), "masked entries", counts)
        value = np.ma.getdata(value)
    array = _as_numpy(name, value)
    if array.dtype == object and array.ndim and not isinstance(value, np.ndarray | list | tuple):
        array = _of_objects(name, array, counts)
    return array.astype(_standard(name, value, array.dtype), copy=False)


def joined(name: str, value: Any) -> Any:
    """A list as one array where its parts are traced or masked, which NumPy would not see."""
    parts = jax.tree.leaves(value)
    try:
        if any(isinstance(part, jax.core.Tracer) for part in parts):
            return jnp.asarray(value)
        if any(isinstance(part, np.ma.MaskedArray) for part in parts):
            with warnings.catch_warnings(action="ignore"):
                return np.ma.array(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: must be numeric, got a list that is no array: {first_line(error)}") from error
    return value


def _of_jax(name: str, value: Array) -> Array:
    dtype = value.dtype
    if jnp.issubdtype(dtype, jax.dtypes.extended):
        raise ValueError(f"{name}: must be numeric, got random keys ({dtype}); those are for arguments called key")
    if not isinstance(value, jax.core.Tracer) and value.is_deleted():
        raise ValueError(f"{name}: is a JAX array that was deleted or donated; pass one that is still there")
    wanted = _standard(name, value, dtype)
    return value if wanted == dtype else value.astype(wanted)


def _as_numpy(name: str, value: Any) -> np.ndarray:
    for method in ("toarray", "todense"):
        if hasattr(value, method):
            raise ValueError(f"{name}: is sparse ({type(value).__name__}); pass {name}.{method}()")
    try:
        return np.asarray(value)
    except Exception as error:  # whatever its __array__ may raise
        got = f"{type(value).__name__}, of which NumPy makes no array: {first_line(error)}"
        raise ValueError(f"{name}: must be numeric, got {got}; pass one array of numbers") from error


def _standard(name: str, value: Any, dtype: np.dtype) -> np.dtype:
    """The dtype in which numbers of this one are kept, or a ValueError if they are none."""
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise ValueError(
            f"{name}: must be real, got dtype {dtype}; pass its real part, or real and imaginary parts as columns"
        )
    if jnp.issubdtype(dtype, jnp.floating):
        return np.dtype(np.float32 if dtype.itemsize < 4 else np.float64 if dtype.itemsize > 4 else np.float32)
    if dtype.kind in "biu":
        return dtype.newbyteorder("=")
    if jnp.issubdtype(dtype, jnp.integer) and dtype.kind == "V":  # of 2 or 4 bits
        return np.dtype(np.int8)
    if dtype.kind in "Mm":
        remedy = "count them in a unit, e.g. (t - t.min()) / np.timedelta64(1, 's')"
    else:
        remedy = "convert it to float32 or float64"
    is_array = hasattr(value, "dtype") or isinstance(value, list | tuple)
    got = f"dtype {dtype}" if is_array else "None" if value is None else type(value).__name__
    raise ValueError(f"{name}: must be numeric, got {got}; {remedy}")


def _of_objects(name: str, array: np.ndarray, counts: np.ndarray | None) -> np.ndarray:
    """The numbers of a table with columns of several kinds, as data frames give it."""
    entries = array.ravel().tolist()
    gaps = np.array([_is_gap(entry) for entry in entries], bool)
    blame_rows(name, gaps.reshape(array.shape), "gaps", counts)
    for entry, gap in zip(entries, gaps, strict=True):
        if not (gap or isinstance(entry, Real | np.bool_)):
            raise ValueError(f"{name}: must be numeric, got {type(entry).__name__} {entry!r:.40}; convert or drop it")
    entries = [np.nan if gap else entry for entry, gap in zip(entries, gaps, strict=True)]
    return np.array(entries, float).reshape(array.shape)


def gaps_as_nan(name: str, value: Any) -> Any:
    """The same as an array whose gaps are NaN: masked entries, None, and what a data frame has for them."""
    if isinstance(value, np.ma.MaskedArray):
        masked = np.ma.getmaskarray(value)
        return np.where(masked, np.nan, np.ma.getdata(value)) if masked.any() else np.ma.getdata(value)
    if isinstance(value, jax.Array | np.ndarray) and value.dtype != object:
        return value
    if isinstance(value, list | tuple):
        value = joined(name, value)
    array = value if isinstance(value, jax.Array) else _as_numpy(name, value)
    if array.dtype != object:
        return array
    entries = [np.nan if _is_gap(entry) else entry for entry in array.ravel().tolist()]
    return raw(name, np.array(entries, object).reshape(array.shape).tolist())


def _is_gap(entry: Any) -> bool:
    return type(entry).__name__ in ("NoneType", "NAType", "NaTType")


# ---- into the precision that JAX has


def fitted(name: str, array: np.ndarray, dtype: Any) -> np.ndarray:
    """NumPy's numbers in another dtype; a ValueError where that cannot hold them."""
    dtype = np.dtype(dtype)
    if array.dtype == dtype:
        return array
    if array.dtype.kind in "iu" and dtype.kind in "iu" and array.dtype.itemsize > dtype.itemsize:
        return _whole(name, array)
    flags: list[str] = []
    with np.errstate(over="call", under="call", call=lambda kind, _: flags.append(kind)):
        cast = array.astype(dtype)
    if flags:
        blame_rows(name, np.isinf(cast) & np.isfinite(array), f"numbers that do not fit {dtype}", None, RESCALE)
        tiny = (array != 0) & (np.abs(cast) < np.finfo(dtype).tiny)
        whole = (tiny | (array == 0)).all(axis=0)
        blame_rows(name, tiny & whole, f"numbers too small for {dtype}, all of a column,", None, RESCALE)
    return cast


RESCALE = f"enable x64, {ENABLE_X64}, or rescale"


def _whole(name: str, array: np.ndarray) -> np.ndarray:
    """Integers where JAX has no 64 bits for them: in 32, else as floats that are exact."""
    small = array.astype(np.int32)
    if (small == array).all():
        return small
    lowest = array & -array  # the lowest bit that is set
    digits = array // np.where(lowest == 0, 1, lowest)
    inexact = (digits > 2**24) | ((digits < -(2**24)) if array.dtype.kind == "i" else False)
    blame_rows(name, inexact, "integers that fit neither int32 nor, exactly, float32", None, f"{RESCALE} and shift")
    return array.astype(np.float32)


def blame_rows(name: str, bad: np.ndarray, what: str, counts: np.ndarray | None = None, remedy: str = "") -> None:
    """A ValueError that names the rows, of those that count, in which an entry is bad."""
    if not bad.any():
        return
    remedy = remedy or (GAPS if name == "x" else "drop or impute them")
    if not bad.ndim:
        raise ValueError(f"{name}: has {what}; {remedy}")
    by_row = bad.reshape(bad.shape[0], -1).any(axis=1)
    if counts is not None and counts.shape == by_row.shape:
        by_row &= counts
    if by_row.any():
        found = np.flatnonzero(by_row)
        raise ValueError(f"{name}: has {what} in {found.size} row(s): {listed(found)}; {remedy}")


# ---- one value


def scalar(name: str, value: Any, dtype: Any, remedy: str) -> Array:
    """A number ≥ 0, where it is concrete."""
    value = numbers(name, value, dtype)
    if value.shape != ():
        raise ValueError(f"{name}: must be a scalar, got shape {value.shape}")
    non_negative(name, value, remedy)
    return value


def non_negative(name: str, value: ArrayLike, remedy: str) -> None:
    """A ValueError where a concrete value is negative, NaN or infinite."""
    if is_concrete(value):
        value = np.asarray(value)
        if not (np.isfinite(value) & (value >= 0)).all():
            raise ValueError(f"{name}: must be finite and ≥ 0, got {shown(value)}; {remedy}")


def tolerance(value: Any, dtype: Any, name: str = "tol") -> Any:
    """tol as the loop takes it: NumPy's where it is known, which JAX places in less time than it makes its own."""
    tol = raw(name, value)
    if tol.shape != ():
        raise ValueError(f"{name}: must be a scalar, got shape {tol.shape}")
    non_negative(name, tol, "0 stops at the floor of rounding")
    return tol.astype(dtype)


def count(name: str, value: Any, least: int) -> None:
    """A ValueError where a count is not an integer of at least `least`."""
    if isinstance(value, int) and not isinstance(value, bool):  # of any size
        good = value >= least
    else:
        try:
            array = raw(name, value)
        except ValueError:
            good = False
        else:
            good = array.dtype.kind in "iu" and array.shape == () and not (is_concrete(array) and int(array) < least)
    if not good:
        raise ValueError(f"{name}: must be an integer ≥ {least}, got {shown(value)}")


def steps(name: str, value: Any) -> Array | np.ndarray:
    """A number of steps ≥ 0, as the loop counts them."""
    count(name, value, 0)
    if is_traced(value):
        return jnp.minimum(value, LARGEST_STEPS).astype(jnp.int32)
    return np.asarray(min(int(value), LARGEST_STEPS), np.int32)


def static_count(name: str, value: Any, least: int) -> None:
    """A ValueError where a count that fixes a shape is traced, not an integer, or too small."""
    if not is_concrete(value):
        raise ValueError(f"{name}: fixes a shape, so it must be a Python int, got {value}; mark it static in jax.jit")
    count(name, value, least)


def switch(name: str, value: Any) -> bool:
    """True or False, 1 or 0; a ValueError for anything else that Python would take for one of them."""
    if isinstance(value, bool | np.bool_ | int) and value in (0, 1):
        return bool(value)
    raise ValueError(f"{name}: must be True or False, got {shown(value)}")


def one_of(name: str, value: Any, choices: Iterable[str], otherwise: str = "") -> None:
    """A ValueError where a word is none of those that are known."""
    if not (isinstance(value, str) and value in choices):
        known = ", ".join(f'"{choice}"' for choice in choices)
        raise ValueError(f"{name}: must be one of {known}{otherwise}, got {shown(value)}")


def random_key(value: Any, name: str = "key") -> Any:
    """One key of `jax.random`."""
    if isinstance(value, jax.Array | np.ndarray):
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            if value.shape == ():
                return value
            raise ValueError(f"{name}: must be one key, got {value.shape} of them; take one, or jax.vmap over them")
        if value.dtype == np.uint32 and value.ndim == 1:
            try:
                return jax.random.wrap_key_data(jnp.asarray(value))
            except TypeError:
                pass
    got = f"an array of {value.dtype} {value.shape}" if hasattr(value, "dtype") else f"{type(value).__name__}"
    raise ValueError(f"{name}: must be a key of JAX, got {got}; make one with jax.random.key(0)")


# ---- words for messages


def shown(value: Any) -> str:
    """A value in one line, its middle left out where it is long."""
    if isinstance(value, np.ndarray | jax.Array) and is_concrete(value):
        value = np.array2string(np.asarray(value), threshold=8, edgeitems=2)
        text = " ".join(value.split())
    else:
        text = " ".join(repr(value).split())
    return text if len(text) <= 120 else f"{text[:80]} … {text[-30:]}"


def listed(indices: np.ndarray) -> str:
    """The first of some indices."""
    return ", ".join(map(str, indices[:5])) + (", …" if indices.size > 5 else "")


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".:")


def warn(message: str) -> None:
    """A warning at the line that called jaxem, shown once for each such line."""
    frame: Any = sys._getframe()
    outermost = frame
    while frame is not None:
        outermost = frame if frame.f_code.co_filename.startswith(PACKAGE) else outermost
        frame = frame.f_back
    caller = outermost.f_back or outermost
    registry = caller.f_globals.setdefault("__warningregistry__", {})
    warnings.warn_explicit(message, UserWarning, caller.f_code.co_filename, caller.f_lineno, registry=registry)
