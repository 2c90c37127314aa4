"""A program's arguments: what is data, what is fixed, and how the two are told apart.

Arrays and floats are data, which JAX may trace. Everything else (ints, bools, strings, functions, a Namespace of
options) is fixed: part of what a compiled fit is compiled for. A fixed object is compared by its own equality where
it has a hash, else by what it holds, else by identity.
"""

import pickle
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxem._core.arrays import numbers


class Fixed:
    """A Python object as a part of a program's shape: hashable, and equal to what the program cannot tell from it."""

    def __init__(self, value: Any):
        self.value = value
        self.key = (type(value), likeness(value))  # the type, since True is not 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fixed) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        return repr(self.value)


def likeness(value: Any) -> Any:
    """What stands for an object when it is compared: itself, else what it holds, else where it is."""
    try:
        hash(value)
        return value
    except TypeError:
        pass
    try:
        return pickle.dumps(value)  # a Namespace, a dataclass, an array of strings: changed in place it is another
    except Exception:  # whatever an object's own __reduce__ may raise
        return id(value)


class Cut(NamedTuple):
    """How a program's arguments are cut into rows (`_row_plate`). Static: it says nothing of how many there are."""

    plate: str
    places: tuple[int, ...]  # the leaves with the rows along their leading axis
    planned: int  # rows of the stand-ins that tell what is true of any number of rows
    entries: int = 1  # of the largest table, for each row
    width: int = 1  # numbers made for each row
    varying: frozenset[tuple[str, str]] = frozenset()  # (term, argument) of distributions that have an axis of rows


@jax.tree_util.register_pytree_node_class
class Arguments:
    """A program's arguments, positional and by keyword: arrays and floats are leaves, everything else is static.

    Where they are `cut`, a program of some of their rows is the same program.
    """

    def __init__(self, leaves: tuple[Any, ...], treedef: Any, static: tuple[Any, ...], cut: Cut | None = None):
        self.leaves, self.treedef, self.static, self.cut = leaves, treedef, static, cut

    @classmethod
    def of(cls, x: Any) -> "Arguments":
        """x of `em`: the argument, the tuple of the arguments, or what `arguments` made."""
        if isinstance(x, Arguments):
            return x
        several = isinstance(x, tuple) and not hasattr(x, "_fields")  # a NamedTuple is one argument
        return arguments(*x) if several else arguments(x)

    def unpack(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """(positional, by keyword). Data are JAX's arrays: NumPy's cannot be indexed by what is traced."""
        pairs = zip(self.leaves, self.static, strict=True)
        leaves = [fixed.value if leaf is None else jnp.asarray(leaf) for leaf, fixed in pairs]
        return jax.tree.unflatten(self.treedef, leaves)

    def arrays(self) -> list[Array]:
        return [leaf for leaf in self.leaves if leaf is not None]

    def cast(self, value: Any) -> Array:
        """A floating number in the precision of the data, where the data have one."""
        value = jnp.asarray(value)
        floating = [leaf.dtype for leaf in self.arrays() if jnp.issubdtype(leaf.dtype, jnp.floating)]
        if not jnp.issubdtype(value.dtype, jnp.floating):
            value = value.astype(float)
        return value.astype(jnp.result_type(*floating)) if floating else value

    def shapes(self) -> "Arguments":
        """The same with shapes for arrays: hashable, and all that a plan may depend on."""
        leaves = (None if v is None else jax.ShapeDtypeStruct(v.shape, v.dtype) for v in self.leaves)
        return Arguments(tuple(leaves), self.treedef, self.static, self.cut)

    # ---- rows, where they are cut

    def rows(self) -> tuple[Any, ...]:
        """Every leaf with the rows along its leading axis."""
        return tuple(self.leaves[place] for place in self.cut.places) if self.cut else ()

    def by(self, cut: Cut | None) -> "Arguments":
        """The same, cut so."""
        return Arguments(self.leaves, self.treedef, self.static, cut)

    def with_rows(self, rows: tuple[Any, ...]) -> "Arguments":
        """The same with other rows."""
        places = self.cut.places if self.cut else ()
        new = dict(zip(places, rows, strict=True))
        leaves = tuple(new.get(place, leaf) for place, leaf in enumerate(self.leaves))
        return Arguments(leaves, self.treedef, self.static, self.cut)

    def num_rows(self) -> int:
        return int(self.rows()[0].shape[0])

    def some(self, count: int = 2) -> "Arguments":
        """The first rows: enough for what is the same for all."""
        return self.with_rows(tuple(leaf[:count] for leaf in self.rows()))

    def planned(self) -> "Arguments":
        """Shapes that tell what is true of any number of rows; where nothing is cut, of these."""
        shapes = self.shapes()
        if self.cut is None:
            return shapes
        size = self.cut.planned
        rows = tuple(jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype) for leaf in shapes.rows())
        return shapes.with_rows(rows).by(None)

    def tree_flatten(self) -> tuple:
        return self.leaves, (self.treedef, self.static, self.cut)

    @classmethod
    def tree_unflatten(cls, static: tuple, leaves: tuple) -> "Arguments":
        return cls(tuple(leaves), *static)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Arguments) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple:
        return self.leaves, self.treedef, self.static, self.cut


def arguments(*args: Any, **kwargs: Any) -> Arguments:
    """A program's arguments as it would be called with them, for where a program has keyword arguments.

    It stands for `x` in `em` and everywhere else. Without keywords `x` may as well be the tuple of the arguments.

    Args:
        args: those by position. Arrays and floats, in any pytree, are data; all else is static.
        kwargs: those by name, likewise.

    Raises:
        ValueError: for an argument that is neither data nor can be told from others.

    >>> import jax, jax.numpy as jnp, jaxem, numpyro
    >>> from numpyro import distributions as dist
    >>> def program(x, *, sigma=1.0):
    ...     with numpyro.plate("rows", len(x)):
    ...         z = numpyro.sample("z", dist.Bernoulli(0.5))
    ...         numpyro.sample("x", dist.Normal(2.0 * z, sigma), obs=x)
    >>> x = jaxem.arguments(jnp.array([0.0, 2.0]), sigma=0.5)
    >>> jaxem.decode(jaxem.from_numpyro(program), {}, x)["z"].tolist()
    [0, 1]
    """
    leaves, treedef = jax.tree.flatten((args, kwargs))
    try:
        hash(treedef)
    except TypeError as error:
        raise ValueError(
            f"x: an argument is a pytree with fixed fields that have no hash ({error}); pass its arrays"
        ) from error
    found = tuple(as_data(leaf) for leaf in leaves)
    static = tuple(Fixed(leaf) if data is None else None for leaf, data in zip(leaves, found, strict=True))
    return Arguments(found, treedef, static)


def as_data(leaf: Any) -> Array | None:
    """The array that an argument is, or None where it is no data."""
    if isinstance(leaf, bool | int | str | bytes | np.integer | np.bool_) or callable(leaf):
        return None
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
        return leaf  # keys
    if not isinstance(leaf, jax.Array | float | complex | np.number):
        if not any(hasattr(leaf, name) for name in ("__array__", "__jax_array__", "toarray")):
            return None
        if isinstance(leaf, np.ndarray) and (leaf.dtype.kind in "SU" or any(isinstance(v, str) for v in leaf.flat[:1])):
            return None  # words
    return numbers("x", leaf, rows=True)
