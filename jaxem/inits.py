"""Starts for EM. Keys come in as arguments; K fixes shapes, so it is a Python int.

All set π = 1/K and the scales to the pooled scale of the data; they differ in how centres are chosen. A row of weight w
stands for w rows: it is drawn, and pooled, so much more, and at w = 0 not at all. Distances are by differences.
`random_points` and `kmeans_plus_plus` run inside `jit` and `vmap` over keys.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from jaxem._core import ward
from jaxem._core.arrays import RESCALE, listed, random_key, raw, shown, static_count
from jaxem._core.checks import as_floating, blame_x, prepare_labels, rows_and_weights
from jaxem._core.model import Theta
from jaxem._core.tracing import compiled, is_concrete
from jaxem.families._centres import LOG_WEIGHTS, draw_centres, proportional_to_distance, uniform_over_the_rest
from jaxem.families._enter import check_support
from jaxem.families._exponential_family import mean_of_rows
from jaxem.families._missing import beside
from jaxem.families._mixture import Mixture, mixture_only
from jaxem.families.gaussian._moments import unit_of

__all__ = ["from_labels", "hierarchical", "kmeans_plus_plus", "many", "random_points"]


def __dir__() -> list[str]:
    return __all__


POWERS = {"mu": 1, "sigma": 1, "loadings": 1, "Sigma": 2, "volume": 2, "box": 1}  # of the unit of x


def random_points(
    m: Mixture,
    key: Array,
    x: Any,
    num_components: int,
    *,
    num_categories: int | None = None,
    weights: ArrayLike | None = None,
) -> Theta:
    """K rows of x, distinct in value, drawn one after another, each row not yet taken equally likely, or
    with probability ∝ w_n where `weights` (N,) are given.

    Rows that repeat a chosen value are excluded: coincident centres are a tie that EM splits and Lloyd
    does not. With fewer than K distinct rows a concrete x raises; a traced x repeats the first row.

    Args:
        m: a mixture of `jaxem.families`.
        key: a key of `jax.random`.
        x: the data, (N, D), or (N,) for D = 1.
        num_components: K ≤ N.
        num_categories: C of a categorical family, a Python int; max(x) + 1 when absent, which needs a concrete x.
        weights: w (N,) ≥ 0, or None: all 1.

    >>> import jax, jaxem
    >>> from jaxem.families import gaussian
    >>> x = jax.numpy.array([[0.0], [0.0], [0.0], [5.0]])
    >>> theta = jaxem.inits.random_points(gaussian.isotropic, jax.random.key(0), x, 2)
    >>> sorted(theta["mu"].ravel().tolist())
    [0.0, 5.0]
    """
    return _from_centres(m, key, x, num_components, num_categories, weights, uniform_over_the_rest)


def kmeans_plus_plus(
    m: Mixture,
    key: Array,
    x: Any,
    num_components: int,
    *,
    num_categories: int | None = None,
    weights: ArrayLike | None = None,
) -> Theta:
    """k-means++ (Arthur & Vassilvitskii 2007): each next centre is a row drawn with probability ∝ min_k d_nk,
    and ∝ w_n min_k d_nk where `weights` (N,) are given, the first ∝ w_n.

    For a categorical family d is the number of features that differ: half the squared distance of one-hots.

    Args:
        m: a mixture of `jaxem.families`.
        key: a key of `jax.random`.
        x: the data, (N, D), or (N,) for D = 1.
        num_components: K ≤ N, and no more than x has distinct rows.
        num_categories: C of a categorical family, a Python int; max(x) + 1 when absent, which needs a concrete x.
        weights: w (N,) ≥ 0, or None: all 1.

    >>> import jax, jaxem
    >>> from jaxem.families import gaussian
    >>> x = jax.numpy.array([[0.0], [0.1], [9.0], [9.1]])
    >>> theta = jaxem.inits.kmeans_plus_plus(gaussian.isotropic, jax.random.key(0), x, 2)
    >>> bool(abs(theta["mu"][0, 0] - theta["mu"][1, 0]) > 8)
    True
    """
    return _from_centres(m, key, x, num_components, num_categories, weights, proportional_to_distance)


def many(
    m: Mixture,
    keys: Array,
    x: Any,
    num_components: int,
    *,
    init: Any = "k-means++",
    num_categories: int | None = None,
    weights: ArrayLike | None = None,
) -> Theta:
    """A start for each of several keys, along a leading axis, for `jaxem.em_batch`; x is looked at once.

    Args:
        m: a mixture of `jaxem.families`.
        keys: keys of `jax.random`, (S,).
        x: the data, (N, D), or (N,) for D = 1.
        num_components: K ≤ N.
        init: "k-means++" or "random": how the rows are drawn that become centres.
        num_categories: C of a categorical family, a Python int; max(x) + 1 when absent, which needs a concrete x.
        weights: w (N,) ≥ 0, or None: all 1.

    >>> import jax, jaxem
    >>> from jaxem.families import gaussian
    >>> x = jax.numpy.array([[0.0], [0.1], [9.0], [9.1]])
    >>> jaxem.inits.many(gaussian.isotropic, jax.random.split(jax.random.key(0), 5), x, 2)["mu"].shape
    (5, 2, 1)
    """
    if init not in LOG_WEIGHTS:
        raise ValueError(f"init: must be one of {', '.join(map(repr, LOG_WEIGHTS))}, got {shown(init)}")
    return _from_centres(m, keys, x, num_components, num_categories, weights, LOG_WEIGHTS[init], lanes=True)


def from_labels(
    m: Mixture,
    x: Any,
    labels: ArrayLike,
    num_components: int | None = None,
    *,
    num_categories: int | None = None,
    weights: ArrayLike | None = None,
) -> Theta:
    """One M-step from hard labels (N,) in 0 … K−1, weighted: the complete-data maximum likelihood.

    Concrete labels must give every class a row; with traced ones a class without rows stays at the overall mean. Held
    parameters keep the start's value (π = 1/K, pooled scales). With noise (`gaussian.with_noise`) label K is noise;
    where no row has it, noise starts with the share 1/(K + 1), since EM leaves a share of 0 where it is.

    Args:
        m: a mixture of `jaxem.families`.
        x: the data, (N, D), or (N,) for D = 1.
        labels: (N,), integers.
        num_components: K; max(labels) + 1 when absent, which needs concrete labels and a mixture without noise.
        num_categories: C of a categorical family, a Python int; max(x) + 1 when absent, which needs a concrete x.
        weights: w (N,) ≥ 0, or None: all 1.

    >>> import jax.numpy as jnp, jaxem
    >>> from jaxem.families import gaussian
    >>> theta = jaxem.inits.from_labels(gaussian.isotropic, jnp.array([[0.0], [2.0], [9.0]]), jnp.array([0, 0, 1]))
    >>> theta["mu"].ravel().tolist(), [f"{share:.2f}" for share in theta["pi"]]
    ([1.0, 9.0], ['0.67', '0.33'])
    """
    m = mixture_only("inits.from_labels", m)
    x, w = _rows(x, weights)
    labels = raw("labels", labels)
    if num_components is None:
        if m.has_noise:
            raise ValueError("num_components: must be given with noise, whose label it is; the others lie below")
        if not is_concrete(labels):
            raise ValueError("num_components: must be given where labels are traced")
        whole = labels.size and jnp.issubdtype(labels.dtype, jnp.integer)
        num_components = max(int(np.max(labels)) + 1, 1) if whole else 1  # else what follows says what is wrong
    static_count("num_components", num_components, 1)
    num_components = int(num_components)
    labels = prepare_labels(labels, x, num_components + m.has_noise, least=0)
    _every_class_has_rows(labels, w, num_components)
    theta = _fitted_to(m, x, w, labels, num_components, num_categories)
    _not_singular(m, theta)
    return _with_a_share_for_noise(m, theta)


def hierarchical(
    m: Mixture,
    x: Any,
    num_components: int,
    *,
    num_categories: int | None = None,
    weights: ArrayLike | None = None,
) -> Theta:
    """One M-step from the K clusters of Ward's hierarchical clustering; no key, since nothing is drawn.

    Distances are of x for `isotropic` and `spherical`, which know one unit; of columns over their standard deviations
    for diagonal models; else, as in R's mclust, of the principal components of those, each over the root of its own
    standard deviation. So the unit of a column decides nothing, and clusters that are long and narrow, at which
    k-means++ starts fail, are found more often. Where a cluster has too few rows for its own scales, all scales are
    pooled ones.

    Args:
        m: a mixture of `jaxem.families`.
        x: the data, (N, D), or (N,) for D = 1; concrete, of at most 5,000 rows, all distances between which are taken.
        num_components: K ≤ N.
        num_categories: C of a categorical family.
        weights: w (N,) ≥ 0: the M-step's; a row of weight 0 is in no cluster, the others are in one row's right.

    Raises:
        ValueError: for a traced x, more rows, K > N, or where SciPy is not installed.

    >>> import jax.numpy as jnp, jaxem
    >>> from jaxem.families import gaussian
    >>> x = jnp.array([[0.0, 0.0], [900.0, 0.1], [0.0, 5.0], [900.0, 5.1]])     # two rows, seen by their second column
    >>> theta = jaxem.inits.hierarchical(gaussian.isotropic, x / jnp.array([[900.0, 1.0]]), 2)
    >>> [f"{value:.2f}" for value in sorted(theta["mu"][:, 1])]
    ['0.05', '5.05']
    """
    m = mixture_only("inits.hierarchical", m)
    x, w = _rows(x, weights)
    static_count("num_components", num_components, 1)
    K = int(num_components)
    if not is_concrete(x, w):
        raise ValueError("x: is traced, and SciPy clusters concrete rows; call inits.hierarchical outside of jit")
    counted = np.ones(len(x), bool) if w is None else np.asarray(w) > 0
    N = int(counted.sum())
    if N > ward.MOST_ROWS:
        raise ValueError(f"x: has {N} rows, of which all distances would be taken; pass {ward.MOST_ROWS}, or k-means++")
    if K > N:
        raise ValueError(f"num_components: {K} exceeds the {N} rows of x; ask for fewer")
    if len(np.unique(np.asarray(x)[counted], axis=0)) < K:
        raise ValueError(f"num_components: x has fewer than {K} distinct rows; ask for fewer")
    found = np.zeros(len(x), int)
    found[counted] = ward.labels_of(ward.coordinates(dict(m.shapes), np.asarray(x, float)[counted]), K)
    labels = jnp.asarray(found)
    theta = _fitted_to(m, x, w, labels, K, num_categories)
    try:
        _not_singular(m, theta)
    except ValueError:
        share = jax.nn.one_hot(labels, K, axis=0, dtype=x.dtype) * (1 if w is None else w[None])
        theta = _guess(m, share @ x / jnp.sum(share, axis=1, keepdims=True), x, w, num_categories)
    return _with_a_share_for_noise(m, theta)


def _is_categorical(m: Mixture) -> bool:
    return any("C" in spec.split() for _, spec in m.shapes)


def _from_centres(
    m: Mixture,
    key: Array,
    x: Any,
    num_components: int,
    num_categories: int | None,
    weights: ArrayLike | None,
    log_weights: Callable,
    lanes: bool = False,
) -> Theta:
    m = mixture_only("inits", m)
    key = key if lanes else random_key(key)
    x, w = _rows(x, weights)
    static_count("num_components", num_components, 1)
    num_components = int(num_components)
    if num_components > x.shape[0]:
        raise ValueError(f"num_components: {num_components} exceeds the {x.shape[0]} rows of x; ask for fewer")
    draw = partial(draw_centres, num_components=num_components, log_weights=log_weights, categorical=_is_categorical(m))
    centres, distinct = (jax.vmap(draw, in_axes=(0, None, None)) if lanes else draw)(key, x, w)
    if is_concrete(distinct) and not np.all(distinct):
        of_weight = "" if w is None else " of positive weight"
        raise ValueError(f"num_components: x has fewer than {num_components} distinct rows{of_weight}; ask for fewer")
    return _guess(m, centres, x, w, num_categories, lanes)


def _rows(x: Any, weights: ArrayLike | None) -> tuple[Array, Array | None]:
    """x, floating and finite, and w in its precision."""
    x, w = rows_and_weights(x, weights)
    x = as_floating(x)
    blame_x(x, jnp.sum(x))
    return x, w if w is None else w.astype(x.dtype)


def _guess(
    m: Mixture, centres: Array, x: Array, w: Array | None, num_categories: int | None, lanes: bool = False
) -> Theta:
    """The family's start at these centres, x checked against its support."""
    if _is_categorical(m):
        if num_categories is None:
            if not is_concrete(x):
                raise ValueError("num_categories: must be given where x is traced; it fixes a shape, so a Python int")
            num_categories = max(int(np.max(x)) + 1, 1)
        static_count("num_categories", num_categories, 1)
        num_categories = int(num_categories)
    elif num_categories is not None:
        raise ValueError("num_categories: this mixture has no categories; leave it out")
    start = partial(_start, m, x=x, w=w, num_categories=num_categories)
    theta = jax.vmap(start)(centres) if lanes else start(centres)
    for scale in m.numerics.scales:
        if is_concrete(theta[scale]) and not _is_scale(scale, np.asarray(theta[scale])):
            raise ValueError(f"x: its {scale} does not fit {x.dtype}; {RESCALE}")
    check_support(m, jax.tree.map(lambda leaf: leaf[0], theta) if lanes else theta, x)
    return theta


@partial(compiled, static_argnames="num_categories")
def _start(m: Mixture, centres: Array, x: Array, w: Array | None, num_categories: int | None) -> Theta:
    weighted = {} if w is None else {"weights": w}
    if not m.numerics.scales:
        return m.guess(centres, x, *(() if num_categories is None else (num_categories,)), **weighted)
    unit = unit_of(jnp.max(jnp.abs(x)))
    theta = m.guess(centres / unit, x / unit, **weighted)
    return {name: value * unit ** POWERS.get(name, 0) for name, value in theta.items()}


@compiled
def _mean(x: Array, w: Array | None) -> Array:
    return mean_of_rows(x, w)


def _is_scale(name: str, value: np.ndarray) -> bool:
    """Is it finite, and above 0 where it has to be?"""
    positive = np.diagonal(value, axis1=-2, axis2=-1) if name in ("Sigma", "correlation") else value
    return bool(np.isfinite(value).all() and (name == "rotation" or (positive > 0).all()))


def _fitted_to(
    m: Mixture, x: Array, w: Array | None, labels: Array, num_components: int, num_categories: int | None
) -> Theta:
    """One M-step from hard labels, of a start with all centres at the mean."""
    start = _guess(m, jnp.tile(_mean(x, w)[None], (num_components, 1)), x, w, num_categories)
    return _m_step(m, start, x, w, labels)


def _with_a_share_for_noise(m: Mixture, theta: Theta) -> Theta:
    """π_0 = 1/(K + 1) where noise is free and no row has it."""
    if not m.has_noise or "pi" in m.held:
        return theta
    pi = theta["pi"]
    share = 1 / pi.shape[0]
    return theta | {"pi": jnp.where(pi[-1] > 0, pi, ((1 - share) * pi).at[-1].set(share))}


def _every_class_has_rows(labels: Array, w: Array | None, num_components: int) -> None:
    if is_concrete(labels, w):
        counted = np.asarray(labels) if w is None else np.asarray(labels)[np.asarray(w) > 0]
        empty = np.flatnonzero(np.bincount(counted, minlength=num_components) == 0)
        if empty.size:
            raise ValueError(
                f"labels: no row has class {listed(empty)} of 0 … {num_components - 1}; "
                "renumber the classes without gaps, or lower num_components"
            )


def _not_singular(m: Mixture, theta: Theta) -> None:
    """A ValueError where the labels leave a parameter without a finite, admissible maximum."""
    for name in m.free:
        value = theta[name]
        if is_concrete(value):
            concrete = np.asarray(value)
            if not (np.isfinite(concrete).all() and np.all(m.constraint(name)(concrete))):
                raise ValueError(
                    f"labels: with these classes the likelihood has no maximum in {name!r}, because a class has too "
                    f"few rows, or rows without spread; give it more rows, merge it with another, or hold {name!r}"
                )


@compiled
def _m_step(m: Mixture, theta: Theta, x: Array, w: Array | None, labels: Array) -> Theta:
    gamma = jax.nn.one_hot(labels, theta["pi"].shape[0], axis=0, dtype=x.dtype)
    gamma = gamma if w is None else gamma * w[None]
    x = x if m.takes_whole_rows else beside(x, jnp.zeros(x.shape, bool))

    def m_step(theta: Theta) -> Theta:
        return m.update(m.statistics(theta, x, gamma), theta, m.held)

    return m_step(m_step(theta))  # the second about the labels' own means: no cancellation
