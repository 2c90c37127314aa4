"""Which model, and how many components: every candidate fitted, and judged by one criterion."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from jaxem import inits
from jaxem._answers.criteria import CRITERIA, criterion, degrees_of_freedom, terms_at
from jaxem._core.arrays import one_of, random_key, raw, shown, static_count, switch
from jaxem._core.checks import enter
from jaxem._core.model import Model, Theta
from jaxem._core.tracing import is_concrete
from jaxem._core.words import number, table
from jaxem._fit.em import em_batch
from jaxem._fit.fit import chosen, first_of, fitted, whole_rows
from jaxem._fit.loop import Fit, Status
from jaxem._fit.outcome import EMError
from jaxem._fit.progress import awaited, bar
from jaxem._rows.chunks import fits_one_chunk
from jaxem.families import gaussian
from jaxem.families._missing import for_rows
from jaxem.families._mixture import Mixture, mixture_only, num_components


class Candidate(NamedTuple):
    """One model at one K: its best fit in numbers."""

    m: Mixture
    num_components: int
    value: float  # of the criterion; NaN where no start converged
    log_likelihood: float
    num_parameters: int
    status: Status  # of the best start
    counts: dict[str, int]  # how many starts ended how

    @property
    def failed(self) -> int:
        """How many starts did not converge."""
        return sum(count for status, count in self.counts.items() if status != Status.CONVERGED.name)


class Table(tuple[Candidate, ...]):
    """The candidates, in the order in which they were fitted; its repr is a table of models by K, the best marked."""

    criterion: str
    starts: int

    def __new__(cls, candidates: Iterable[Candidate], criterion: str, starts: int) -> "Table":
        self = super().__new__(cls, candidates)
        self.criterion, self.starts = criterion, starts
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return tuple(self), self.criterion, self.starts

    @property
    def best(self) -> Candidate | None:
        """The lowest criterion of those that converged."""
        converged = [candidate for candidate in self if np.isfinite(candidate.value)]
        return min(converged, key=lambda candidate: candidate.value, default=None)

    def __repr__(self) -> str:
        columns: list[tuple[str, dict[int, str]]] = []  # under a prior of each K it is other models that share one
        for candidate in self:
            name, K = repr(candidate.m).replace("gaussian.", ""), candidate.num_components
            if not columns or columns[-1][0] != name or K in columns[-1][1]:
                columns.append((name, {}))
            columns[-1][1][K] = self.cell(candidate)
        counts = list(dict.fromkeys(candidate.num_components for candidate in self))
        rows = [["K", *(name for name, _ in columns)]]
        rows += [[str(K), *(cells.get(K, "") for _, cells in columns)] for K in counts]
        notes = [f"{self.criterion} in nats, smaller is better; * the least"]
        failed = sum(candidate.failed for candidate in self)
        if failed:
            notes.append(f"(n): n of {self.starts} starts did not converge; –: none did")
        return "\n".join([*table(rows), *notes])

    def cell(self, candidate: Candidate) -> str:
        if not np.isfinite(candidate.value):
            return f"– ({candidate.failed})"
        failed = f" ({candidate.failed})" if candidate.failed else ""
        return f"{candidate.value:.2f}{failed}{'*' if candidate is self.best else ''}"


class Selection(NamedTuple):
    """The model that was chosen, its fit, and the table of all candidates."""

    m: Mixture
    fit: Fit
    table: Table

    def __repr__(self) -> str:
        chosen = self.table.best
        assert chosen is not None
        value = f"{self.table.criterion} {number(chosen.value, 8)}"
        return f"Selection: {self.m!r} with {chosen.num_components} component(s), {value}\n{self.fit!r}\n{self.table!r}"


def select(
    x: Any,
    key: Array,
    *,
    models: Any = gaussian.ALL,
    num_components: Any = range(1, 10),
    starts: int = 10,
    criterion: str = "bic",
    prior: Any = None,
    weights: ArrayLike | None = None,
    missing: bool = False,
    progress: bool = False,
    **options: Any,
) -> Selection:
    """Fit every model at every K, and choose the converged fit of least criterion.

    A candidate none of whose starts converged has no maximum that a criterion could judge; it is in the table, and
    never chosen. One component needs no more than one start.

    Args:
        x: the data, (N, D), or (N,) for D = 1.
        key: a key of `jax.random`; each candidate's starts are drawn with the same.
        models: mixtures; `gaussian.ALL` are the fourteen covariance models of R's mclust.
        num_components: the K to try, one or several.
        starts: how many for each candidate.
        criterion: "bic", "aic" or "icl", smaller is better.
        prior: of every candidate, one of `gaussian.with_prior`, or a function of (x, K) that makes it, as
            `gaussian.mclust_prior` is, of whole rows; for models that have one, ten of the fourteen. The criterion is
            of the likelihood at the maximum a posteriori.
        weights: w (N,) ≥ 0, one per row.
        missing: NaN in x is a missing cell, as for `jaxem.fit`.
        progress: show a tqdm bar of candidates; Ctrl-C then ends the call at once.
        options: what else `jaxem.fit` takes: init, temperature, labels, tol, max_steps, accelerate, mesh.

    Returns:
        A `Selection` of `m`, `fit` and `table`; the table is a tuple of candidates whose repr is models by K.

    Raises:
        ValueError: for what `jaxem.fit` refuses.
        EMError: when no start of any candidate converged.

    >>> import jax, jaxem
    >>> from jaxem.families import gaussian
    >>> truth = {"pi": [0.5, 0.5], "mu": [[0.0, 0.0], [9.0, 9.0]], "sigma": 1.0}
    >>> x, _ = jaxem.sample(gaussian.isotropic, truth, jax.random.key(0), 200)
    >>> models = (gaussian.isotropic, gaussian.spherical)
    >>> chosen = jaxem.select(x, jax.random.key(1), models=models, num_components=(1, 2), starts=3)
    >>> chosen.m, len(chosen.fit.theta["pi"]), len(chosen.table)
    (gaussian.isotropic, 2, 4)
    """
    random_key(key)
    static_count("starts", starts, 1)
    one_of("criterion", criterion, CRITERIA)
    progress = switch("progress", progress)
    if not is_concrete(x, key):
        raise ValueError("x: is traced, and a selection has to see its fits; call select outside of jit")
    counts = _counts(num_components)
    candidates = [
        (mixture_only("select", for_rows(own, x, missing, of_a_fit=True)), several)
        for m in _models(models)
        for own, several in under(prior, m, x, counts)
    ]
    found: list[tuple[Candidate, Fit]] = []
    with bar(progress, sum(len(several) for _, several in candidates), "fit") as show:
        for m, several in candidates:
            for K, one in fits_at(m, x, key, several, int(starts), weights, **options):
                one = awaited(one) if progress else one
                found.append((judged(m, K, one, x, criterion, weights), trimmed(m, K, one)))
                show(found[-1][0].value)
    results = Table([candidate for candidate, _ in found], criterion, int(starts))
    best = results.best
    if best is None:
        ended = {name: sum(c.counts.get(name, 0) for c in results) for name in Status.__members__}
        raise EMError(f"select: no start of any candidate converged, {ended}; use gaussian.with_floor, or fewer K")
    return Selection(best.m, next(one for candidate, one in found if candidate is best), results)


def under(prior: Any, m: Mixture, x: Any, counts: list[int]) -> list[tuple[Mixture, list[int]]]:
    """The model, and the K at which it is fitted; under a prior of each K it is a model for each."""
    if not callable(prior):
        return [(m if prior is None else gaussian.with_prior(m, prior), counts)]
    return [(gaussian.with_prior(m, prior(x, K)), [K]) for K in counts]


def fits_at(
    m: Mixture,
    x: Any,
    key: Array,
    counts: list[int],
    starts: int,
    weights: Any,
    *,
    init: Any = "k-means++",
    **options: Any,
) -> Iterator[tuple[int, Fit]]:
    """(K, the best fit) for each K. Few rows: all as lanes of one program, of as many components as the largest has.

    A component with π_k = 0 takes no row and never moves, so θ with K components and θ padded by such ones have the
    same F and the same steps; and the first K centres of k-means++ are k-means++ for K.
    """
    most = max(counts)
    few = fits_one_chunk(len(raw("x", x)), most)
    if callable(init) or not few or len(counts) == 1 or "pi" not in m.parameters or m.extras.prior is not None:
        for K in counts:
            yield K, fitted(m, x, key, K, starts=1 if K == 1 else starts, init=init, weights=weights, **options)
        return
    by_tree = init == "hierarchical"
    drawn = "k-means++" if by_tree else init
    whole = whole_rows(m, x, key, starts, weights)
    first = inits.many(m, jax.random.split(key, starts), whole, most, init=drawn, weights=weights)
    padded = [padding(m, first, K, 1 if K == 1 else starts) for K in counts]
    if by_tree:
        trees = [grown(m, inits.hierarchical(m, whole, K, weights=weights), most) for K in counts]
        padded = [first_of(thetas, tree) for thetas, tree in zip(padded, trees, strict=True)]
    thetas = jax.tree.map(lambda *lanes: jnp.concatenate(lanes), *padded)
    lanes, start = em_batch(m, thetas, x, weights=weights, **options), 0
    for K in counts:
        stop = start + (1 if K == 1 else starts)
        yield K, chosen(jax.tree.map(lambda leaf, here=slice(start, stop): leaf[here], lanes))
        start = stop


def padding(m: Mixture, theta: Theta, K: int, starts: int) -> Theta:
    """The first of several starts, with π = 1/K for K components (and noise its share) and 0 for the others."""
    theta = jax.tree.map(lambda leaf: leaf[:starts], theta)
    entries, share = np.arange(theta["pi"].shape[1]), 1 / (K + m.has_noise)
    taken = (entries < K) | (m.has_noise & (entries == entries[-1]))
    pi = jnp.asarray(np.where(taken, share, 0), theta["pi"].dtype)
    return theta | {"pi": jnp.broadcast_to(pi, theta["pi"].shape)}


def grown(m: Mixture, theta: Theta, K: int) -> Theta:
    """θ with K components: copies of its first, of π = 0, are the new ones."""
    pi, had = theta["pi"], num_components(m, theta)
    none = jnp.zeros(K - had, pi.dtype)

    def padded(spec: str, value: Array) -> Array:
        if not spec.startswith("K"):
            return value
        return jnp.concatenate([value, jnp.broadcast_to(value[:1], (K - had, *value.shape[1:]))])

    others = {name: padded(spec, theta[name]) for name, spec in m.shapes if name != "pi"}
    return others | {"pi": jnp.concatenate([pi[:had], none, pi[had:]])}


def trimmed(m: Mixture, K: int, one: Fit) -> Fit:
    """Without the components that were padding."""
    theta = {name: of_first(K, spec, one.theta[name]) for name, spec in m.shapes}
    return one._replace(theta=one.theta | theta)


def of_first(K: int, spec: str, value: Array) -> Array:
    """An entry of θ of the first K components, and of noise."""
    if spec == "K+1":
        return jnp.concatenate([value[:K], value[-1:]])
    return value[:K] if spec.startswith("K") else value


def judged(m: Mixture, K: int, one: Fit, x: Any, name: str, weights: ArrayLike | None) -> Candidate:
    """A fit's entry in the table; its θ may be padded."""
    status, df = Status(int(one.status)), degrees_of_freedom(m, trimmed(m, K, one).theta, None)
    if status != Status.CONVERGED:  # then θ may be none that could be entered
        return Candidate(m, K, np.nan, np.nan, df, status, Status.counts(one))
    theta, data = enter(m, one.theta, x, weights)
    terms = terms_at(m, theta, data)
    value = float(criterion(name, terms, df))
    return Candidate(m, K, value, float(terms.log_likelihood), df, status, Status.counts(one))


def _models(models: Any) -> list[Mixture]:
    try:
        models = [models] if isinstance(models, Mixture) else list(models)
    except TypeError:
        models = [models]
    if not models:
        raise ValueError("models: is empty; pass at least one mixture, e.g. gaussian.full")
    for m in models:
        if not isinstance(m, Mixture | Model):
            raise ValueError(f"models: must be mixtures of jaxem.families, got {shown(m)}; e.g. (gaussian.full,)")
    return [mixture_only("select", m) for m in models]


def _counts(num_components: Any) -> list[int]:
    counts = list(num_components) if np.iterable(num_components) else [num_components]
    if not counts:
        raise ValueError("num_components: is empty; pass at least one K, e.g. range(1, 10)")
    for K in counts:
        static_count("num_components", K, 1)
    return [int(K) for K in counts]
