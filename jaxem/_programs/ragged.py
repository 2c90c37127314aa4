"""Sequences of different lengths as one array, for programs that mask what lies after the end of each."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxem._core.arrays import numbers


def ragged(sequences: Any, lengths: Sequence[int] | np.ndarray | Array | None = None) -> tuple[Array, Array]:
    """Sequences of different lengths, padded to the longest: (x (sequences, time, …), lengths (sequences,)).

    The pair is a program's arguments, `jaxem.em(m, theta, jaxem.ragged(sequences))`. A program that masks its steps
    from each sequence's length on, latent and all, has the F, gradient and M-step of the sequences one by one, summed.
    What is padded repeats a sequence's last row, so that it lies in the support of any distribution.

    Args:
        sequences: arrays (T_i, …), alike but for their first axis; with `lengths`, all of them end to end in one array
            (Σ T_i, …), as hmmlearn has them.
        lengths: T_i of each.

    Raises:
        ValueError: for no sequence, an empty one, unlike ones, and lengths that do not add up.

    >>> import jax.numpy as jnp, jaxem
    >>> x, lengths = jaxem.ragged([jnp.array([1.0, 2.0, 3.0]), jnp.array([4.0])])
    >>> x.tolist(), lengths.tolist()
    ([[1.0, 2.0, 3.0], [4.0, 4.0, 4.0]], [3, 1])
    >>> jaxem.ragged(jnp.array([1.0, 2.0, 3.0, 4.0]), lengths=[3, 1])[0].tolist()
    [[1.0, 2.0, 3.0], [4.0, 4.0, 4.0]]

    In a program, with `handlers` of NumPyro and `scan` of `numpyro.contrib.control_flow`:

        def program(x, lengths):
            def step(carry, x):
                z, t = carry
                with numpyro.plate("sequences", len(x)), handlers.mask(mask=t < lengths):
                    ...
                return (z, t + 1), None

            scan(step, (jnp.zeros(len(x), int), 0), jnp.swapaxes(x, 0, 1))
    """
    if lengths is not None:
        sequences = cut(sequences, lengths)
    if hasattr(sequences, "ndim") or not hasattr(sequences, "__len__") or isinstance(sequences, str | dict):
        raise ValueError(
            f"sequences: must be a list of arrays, got {type(sequences).__name__}; of one array tell the lengths, too"
        )
    if not len(sequences):
        raise ValueError("sequences: is empty; pass at least one")
    parts = [numbers(f"sequences[{i}]", sequence, rows=True) for i, sequence in enumerate(sequences)]
    for i, part in enumerate(parts):
        if not part.ndim or not len(part):
            raise ValueError(f"sequences[{i}]: must be (time, …) with a step at least, got shape {part.shape}")
        if part.shape[1:] != parts[0].shape[1:]:
            raise ValueError(f"sequences[{i}]: has rows of shape {part.shape[1:]}, the first of {parts[0].shape[1:]}")
    longest = max(map(len, parts))
    widths = [[(0, longest - len(part)), *[(0, 0)] * (part.ndim - 1)] for part in parts]
    padded = [jnp.pad(part, width, mode="edge") for part, width in zip(parts, widths, strict=True)]
    return jnp.stack(padded), jnp.array([len(part) for part in parts])


def cut(rows: Any, lengths: Any) -> list[Array]:
    """The parts of these lengths."""
    x, counts = numbers("sequences", rows, rows=True), np.asarray(lengths)
    if counts.ndim != 1 or counts.dtype.kind not in "iu" or not counts.size or (counts < 1).any():
        raise ValueError(f"lengths: must be a list of integers ≥ 1, got {lengths}")
    if not x.ndim or counts.sum() != len(x):
        raise ValueError(f"lengths: add up to {counts.sum()}, and sequences has {len(x) if x.ndim else 0} rows")
    return jnp.split(x, np.cumsum(counts)[:-1])
