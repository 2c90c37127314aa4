"""What comes in: rows as a set with weights, of few lengths, in the precision that they have; and what is printed."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.experimental
import numpy as np
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, validate_data

from jaxem._fit.loop import Status

MIX = np.uint64(0x9E3779B97F4A7C15)  # 2⁶⁴/φ, odd: to multiply by it loses nothing
SMALLEST, LARGEST = 256, 2**14  # lengths between which rows are made up to a power of two


def validated(estimator: Any, X: Any, **options: Any) -> np.ndarray:
    """X as scikit-learn checks it, and its columns' names with it: finite, (N, D), of 32 or 64 bits."""
    return validate_data(estimator, X, dtype=[np.float64, np.float32], **options)


def weights_of(sample_weight: Any, X: np.ndarray) -> np.ndarray | None:
    """w (N,) ≥ 0 and not all 0, or None."""
    if sample_weight is None:
        return None
    w = _check_sample_weight(sample_weight, X, dtype=X.dtype, ensure_non_negative=True)
    if not w.any():
        raise ValueError("sample_weight: all are 0; at least one non-zero number is needed, or no row counts")
    return w


def distinct(X: np.ndarray, w: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Each row that weighs something once, with the sum of its weights; in an order that their values alone decide.

    So starts that are drawn, and sums that round, do not depend on how the rows were written down; and where rows
    repeat, as those of zeros and ones do, there are fewer of them to sum.
    """
    X, w = (X, np.ones(len(X), X.dtype)) if w is None else (X[w > 0], w[w > 0])
    order = np.argsort(fingerprints(X), kind="stable")
    X, w = X[order], w[order]
    first = np.append(True, (X[1:] != X[:-1]).any(axis=1))  # were two prints equal by chance, a row would be here twice
    return X[first], np.add.reduceat(w, np.flatnonzero(first))


def fingerprints(X: np.ndarray) -> np.ndarray:
    """64 bits of each row, (N,); those of equal rows are equal."""
    prints = np.zeros(len(X), np.uint64)
    for column in X.T:
        bits = (column.astype(np.float64) + 0.0).view(np.uint64)  # −0 + 0 is 0
        prints = (prints ^ bits) * MIX
        prints ^= prints >> np.uint64(32)
    return prints


def roomy(X: np.ndarray) -> np.ndarray:
    """X with copies of its first row below it, up to one of a few lengths, so that little is compiled anew.

    Of weight 0, or cut off what comes out, they count for nothing. Much data stays as it is: there, rows take longer.
    """
    extra = max(SMALLEST, 1 << (len(X) - 1).bit_length()) - len(X) if len(X) < LARGEST else 0
    return np.concatenate([X, np.repeat(X[:1], extra, axis=0)]) if extra else X


def with_room(x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same of rows with weights."""
    longer = roomy(x)
    return longer, np.append(w, np.zeros(len(longer) - len(w), w.dtype))


def precision(X: np.ndarray) -> AbstractContextManager:
    """Where JAX computes in the precision of X."""
    if jax.dtypes.canonicalize_dtype(X.dtype) == X.dtype:
        return nullcontext()
    where: Any = jax if hasattr(jax, "enable_x64") else jax.experimental  # before JAX 0.8
    return where.enable_x64(True)


def key_of(random_state: Any) -> jax.Array:
    """A key for this call: of an int the same each time, else of the next draw."""
    return jax.random.key(check_random_state(random_state).randint(2**31 - 1))


def given_array(name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    """A start that the user gives, of this shape."""
    if value is None:
        return None
    array = np.asarray(value, float)
    if array.shape != shape or not np.isfinite(array).all():
        raise ValueError(f"{name}: must be finite, of shape {shape}, got shape {array.shape}")
    return array


def counts_to_use(estimator: Any, *names: str) -> None:
    """A ValueError where one of these parameters is no integer ≥ 1."""
    for name in names:
        value = getattr(estimator, name)
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name}: must be an integer ≥ 1, got {value!r}")


def report(estimator: Any, starts: Iterable[tuple[Any, Any, Any]], kept: float, unit: str) -> None:
    """A line for each start, (status, steps, value), and one for what was kept."""
    name = type(estimator).__name__
    for start, (status, steps, value) in enumerate(starts):
        print(f"{name}: start {start}: {Status(int(status)).name} after {int(steps)} steps, {float(value):.6f} {unit}")
    print(f"{name}: kept {kept:.6f} {unit}")
