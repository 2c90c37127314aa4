"""The row plate of a program: where a chunk of the rows is the same program on fewer of them.

A plate that holds every discrete latent and all that is observed is one of rows where the program, given some of them
in any order, gives its distributions what it gave them for these rows before:

    program(x[rows]) = program(x)[rows]

That is found by asking: at stand-ins for the arguments, at two sizes. Each argument with as many rows as the plate
along its leading axis is cut along it, and what comes of the cut arguments is compared with what was cut out. A mean
over rows, a covariate that is the number of the row, a share 1/N: each shows there. Then expected statistics are
sums over rows, and rows can be taken in chunks, on several devices, from a stream, each with a weight.
"""

import math
from typing import Any

import jax
import numpy as np

from jaxem._core.arrays import first_line
from jaxem._programs.arguments import Arguments, Cut
from jaxem._programs.follow import Found, Place, close
from jaxem._programs.structure import Structure

FEWEST, A_VALUE = 64, 4  # rows of the stand-ins: as many, or so many for each entry along the longest axis of θ
SMALL = 2**15  # entries of a table that is not worth cutting


class Whole(ValueError):
    """Why a program has no row plate."""


def is_small(structure: Structure, x: Arguments) -> bool:
    """Would its tables fit one chunk anyway?"""
    values = max(structure.enumerated.values())
    return max([1, *(math.prod(leaf.shape) for leaf in x.arrays())]) * values <= SMALL


def find(m: Any, shapes: Arguments, structure: Structure, probe_of: Any) -> Cut:
    """How the arguments are cut along the outermost plate that can be; `Whole` where none can.

    Args:
        m: the program.
        shapes: of its arguments.
        structure: at these.
        probe_of: (shapes) → a `Probe` of the program there.
    """
    if structure.apart:
        raise Whole(structure.apart)
    reasons: list[str] = []
    for plate, size in structure.common.items():
        try:
            return along(m, shapes, structure, plate, size, probe_of)
        except Whole as why:
            reasons.append(str(why))
    raise Whole(reasons[0])


def along(m: Any, shapes: Arguments, structure: Structure, plate: str, size: int, probe_of: Any) -> Cut:
    """How they are cut along this plate."""
    per_row = [name for name, parameter in structure.parameters.items() if plate in parameter.plates]
    if per_row:
        raise Whole(f"{per_row[0]!r} has a value for each member of plate {plate!r}")
    places = tuple(
        place for place, leaf in enumerate(shapes.leaves) if leaf is not None and leaf.shape and leaf.shape[0] == size
    )
    if not places:
        raise Whole(f"no argument has the {size} rows of plate {plate!r} along its leading axis")
    sides = jax.tree.leaves([parameter.shape for parameter in structure.parameters.values()])
    enough = max(FEWEST, A_VALUE * max(1, *sides, *structure.enumerated.values()))
    cut = Cut(plate, places, enough)
    try:
        whole = shapes.by(cut).planned()
        here = m.structure(whole)
        if fixed(here) != fixed(structure):
            raise Whole(f"its parameters or latents change with the number of rows of plate {plate!r}")
        probe = probe_of(whole)
        index = np.random.default_rng(3).permutation(cut.planned)[: cut.planned // 2]
        some = probe.data.by(cut)
        some = some.with_rows(tuple(leaf[index] for leaf in some.rows())).by(None)
        part, priors, sizes = probe.given(some)
    except Whole:
        raise
    except Exception as error:  # whatever the program may raise with other rows
        cause = error.__cause__ or error  # the program's own words, and not those of who called it
        raises = f"it raises {type(cause).__name__}: {first_line(cause)}"
        raise Whole(f"cut along plate {plate!r}, {raises}; make the plate of len(x)") from error
    found, own = probe.at({})
    kept = [name for name, inside in sizes.plates.items() if inside.get(plate) != len(index)]
    if kept:
        raise Whole(f"plate {plate!r} keeps its size at {kept[0]!r} when the arguments are cut: make it of len(x)")
    varying = along_rows(found, part, index, plate)
    if along_rows(own, priors, index, plate):
        raise Whole(f"a prior changes with the rows of plate {plate!r}")
    entries, width = (max(1, count // len(index)) for count in (sizes.entries, sizes.width))
    return cut._replace(entries=entries, width=width, varying=varying)


def fixed(structure: Structure) -> Any:
    """What must not change with the number of rows."""
    parameters = {name: (p.shape, p.prior, p.plates, p.mixed) for name, p in structure.parameters.items()}
    return parameters, structure.enumerated, structure.dropped, structure.halves


def along_rows(whole: Found, part: Found, index: np.ndarray, plate: str) -> frozenset[Place]:
    """The places that have an axis of rows; `Whole` where what is there does not follow its own row alone."""
    varying = set()
    if whole.keys() != part.keys():
        raise Whole(f"its sites change with the number of rows of plate {plate!r}")
    for place in whole:
        pairs = zip(jax.tree.leaves(whole[place]), jax.tree.leaves(part[place]), strict=True)
        for all_rows, some in ((np.asarray(a), np.asarray(b)) for a, b in pairs):
            axes = [
                axis for axis in range(all_rows.ndim) if all_rows.shape[axis : axis + 1] != some.shape[axis : axis + 1]
            ]
            if axes:
                varying.add(place)
            taken = np.take(all_rows, index, axis=axes[0]) if len(axes) == 1 else all_rows
            if taken.shape != some.shape or not alike(taken, some):
                raise Whole(f"{place[1]} of {place[0]!r} does not follow its own row of plate {plate!r} alone")
    return frozenset(varying)


def alike(left: np.ndarray, right: np.ndarray) -> bool:
    """Equal to rounding, NaN and infinity where the other has them."""
    if left.dtype.kind != "f":
        return bool(np.array_equal(left, right))
    finite = np.isfinite(left)
    same = np.array_equal(left[~finite], right[~finite], equal_nan=True)
    return bool(same and np.isfinite(right[finite]).all() and close(left[finite], right[finite]))
