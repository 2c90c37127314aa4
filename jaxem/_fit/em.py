"""The algorithm as its users call it: `em`, `em_batch`, `kmeans`.

The loop is `loop.py`, many lanes of it `_fit/lanes.py`, where its rows lie `devices.py`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Array

from jaxem._core import columns
from jaxem._core.arrays import RESCALE, one_of, raw, steps, switch
from jaxem._core.checks import blame_x, enter, prepare_centres, rows_and_weights
from jaxem._core.model import Data, Model, Theta, ThetaLike
from jaxem._core.tracing import is_concrete, is_traced
from jaxem._fit import acceleration, loop, nats_left
from jaxem._fit import lanes as _lanes
from jaxem._fit.acceleration import Accelerator
from jaxem._fit.implicit import at_the_fixed_point
from jaxem._fit.loop import Fit, State, Stop, gain_is_small
from jaxem._fit.padding import padded
from jaxem._fit.relocate import relocate
from jaxem._rows import devices
from jaxem.families import gaussian
from jaxem.families._missing import for_rows
from jaxem.families.gaussian._moments import unit_of


def centres_at_rest(before: State, after: State, tolerance: Array) -> Array:
    """Lloyd's stopping rule: no centre moved by more than the rounding of the mean it is."""
    moments = before.expectation.statistics
    mu, moved = before.theta["mu"], jnp.abs(after.theta["mu"] - before.theta["mu"])
    radius = jnp.sqrt(jnp.maximum(moments.spread, 0) / jnp.sum(moments.N_k))
    reach = jnp.max(jnp.abs(mu - jnp.mean(mu, axis=0)[None])) + radius  # how far the rows that it sums lie
    return jnp.all(moved <= 64 * jnp.finfo(mu.dtype).eps * (jnp.abs(mu) + reach))


def centres_at_rest_or_gain_is_small(before: State, after: State, tolerance: Array) -> Array:
    """The same, or J fell by no more than asked for."""
    return centres_at_rest(before, after, tolerance) | gain_is_small(before, after, tolerance)


class Run(NamedTuple):
    """A checked call: what the loop takes, all of it data."""

    theta: Theta
    data: Data
    tol: Any  # a number, or a `NatsLeft` of numbers
    max_steps: Array | np.ndarray


def _prepare_run(
    m: Model,
    theta: ThetaLike,
    x: Any,
    *,
    temperature: ArrayLike,
    weights: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    tol: Any,
    max_steps: ArrayLike,
    batched: bool = False,
) -> Run:
    theta, data = enter(m, theta, x, weights, temperature, labels, batched=batched, plans=True)
    smallest, most = nats_left.stopping(m, theta, data, tol, batched=batched), steps("max_steps", max_steps)
    return Run(theta, data, smallest, most)


def remembered(fit: Fit, x: Any, theta: Any) -> Fit:
    """The fit, its θ knowing the columns of x."""
    return fit._replace(theta=columns.remember(fit.theta, x, theta))


def _not_traced(run: Run) -> None:
    """A ValueError where nobody could be shown anything."""
    if not is_concrete(run):
        raise ValueError("progress: nothing can be shown from inside jit or vmap; leave it out there")


def laid(m: Model, theta: Theta, data: Data, mesh: Mesh | None) -> Data:
    """The rows as a fit takes them: padded on one device, dealt out over the mesh of several."""
    if mesh is None:
        return padded(m, theta, data)
    return devices.spread_rows(m.rows.dealt(data, mesh.size // devices.num_processes(mesh)), mesh)


def _fit(
    m: Model, run: Run, stop: Stop, mesh: Mesh | None, progress: bool = False, accelerate: Accelerator | None = None
) -> Fit:
    """One fit, its rows spread over the mesh of the call."""
    if switch("progress", progress):
        _not_traced(run)
    mesh, data = devices.mesh_for_rows(m, run.data, mesh)
    processes = devices.num_processes(mesh)
    with devices.joined(processes):
        data = laid(m, run.theta, data, mesh)
        given, traced = (run.theta, data), is_traced(run.theta, data)
        theta, data = lax.stop_gradient(given) if traced else given  # the road to a fit has no part in its derivative
        values = (theta, run.tol, run.max_steps)
        steps = devices.steps_a_leg(mesh, (values, data))
        if progress:
            theta, tol, max_steps = devices.replicated(values, mesh)
            fit = loop.run_watched(m, theta, data, tol, max_steps, stop, accelerate)
        elif steps is None or int(run.max_steps) <= steps:
            theta, tol, max_steps = devices.for_one_call(values, mesh)
            fit = loop.run(m, theta, data, tol, max_steps, stop, accelerate)
        else:
            theta, tol, max_steps = devices.replicated(values, mesh)
            fit = loop.run_in_legs(m, theta, data, tol, max_steps, stop, accelerate, steps_a_leg=steps)
        if traced:
            fit = at_the_fixed_point(m, *given, fit)
        if processes > 1:
            jax.block_until_ready(fit)  # a lost process is an error of this call, not of a later one
    blame_x(run.data.x, fit.free_energy)
    return fit


def em(
    m: Model,
    theta: ThetaLike,
    x: Any,
    *,
    temperature: ArrayLike = 1.0,
    weights: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    tol: Any = 1e-10,
    max_steps: ArrayLike = 1000,
    missing: bool = False,
    accelerate: Any = None,
    mesh: Mesh | None = None,
    progress: bool = False,
) -> Fit:
    """Fit a model by expectation–maximisation: coordinate ascent on F_T (eq:F) from `theta`.

    Stops when |gain| ≤ max(tol·W, 8·eps·Σ|F_n|), where W = Σ w_n (N without weights) and the second term is
    the floor below which a change of F is rounding; or at a fall of F within its `rounding`, which also knows the
    terms that cancel inside F_n and the digits of θ. Where `fit.rounding` is above tol·W, as at this tol it is in
    float32, that and not tol ended the fit, and more steps in float64 may gain more. Works inside `jit` and `vmap`
    (over θ, x, temperature, weights).

    Differentiable in both modes, and again, in x, weights, temperature, θ's held entries and a program's arguments: by
    the implicit function theorem at the fixed point (eq:fixed), whatever tol, in memory that does not grow with the
    steps. In the start the derivative is 0. It is NaN, and no silent number, where the fit did not converge, or to a
    point at which I − ∂M/∂θ is singular (equal components, the σ at which centres split); `em_path` differentiates a
    fixed number of steps.

    Args:
        m: the model, e.g. `gaussian.isotropic` or `jaxem.from_numpyro(program)`, possibly with parameters held.
        theta: where to start, a dict of the program's parameters; `jaxem.inits` or `m.init` makes one.
        x: the data, (N, D), or (N,) for D = 1; for a program its argument, or the tuple of its arguments.
        temperature: T of eq:F. 1 is EM; 0 is hard EM, which for `isotropic` with equal π held is k-means.
        weights: w (N,) ≥ 0, one per row.
        labels: (N,) the component of a row where it is known, −1 where not: γ is fixed to it (semi-supervised).
        tol: smallest gain worth a step, in nats per unit of weight. `jaxem.nats_left(0.005)` asks instead for what is
            left: stop about so many nats below the maximum.
        max_steps: most M-steps to do; 0 only evaluates.
        missing: NaN in x is a missing cell, at random, of a mixture: F is the observed-data free energy, and a row with
            nothing observed counts 0. So are masked entries, and None or NA of a data frame. By default an error.
        accelerate: `jaxem.squarem()` or `jaxem.anderson(5)` guess where EM is going, and a guess at which F rises is
            kept: F still never falls, and `num_steps` counts the E-steps at guesses too. None is plain EM.
        mesh: devices to spread the rows over, all axes of a `jax.sharding.Mesh` (Auto); one `psum` a pass adds their
            sums. An x that is already sharded is used as it lies, and `jaxem.use_all_cores` sets a default. Over
            several processes, x is this process's rows.
        progress: show a tqdm bar of steps with F and the last gain; Ctrl-C then ends the call at once.

    Returns:
        A `Fit`; `status` tells how it ended, `jaxem.check(fit)` raises unless it converged.

    Raises:
        ValueError: for a wrong name, shape, dtype or concrete value; it says which and what to do.
        ProcessLost: when another process of the mesh has ended.

    >>> import jax.numpy as jnp, jaxem
    >>> from jaxem.families import gaussian
    >>> x = jnp.array([[-1.2], [-1.0], [-0.8], [0.9], [1.1]])
    >>> theta = {"pi": jnp.array([0.5, 0.5]), "mu": jnp.array([[-0.5], [0.5]]), "sigma": 1.0}
    >>> fit = jaxem.em(gaussian.isotropic, theta, x)
    >>> jaxem.check(fit).theta["mu"].round(1).tolist()
    [[-1.0], [1.0]]
    """
    m = for_rows(m, x, missing, of_a_fit=True)
    run = _prepare_run(
        m, theta, x, temperature=temperature, weights=weights, labels=labels, tol=tol, max_steps=max_steps
    )
    fit = _fit(m, run, gain_is_small, mesh, progress, acceleration.check(m, accelerate))
    return remembered(fit, x, theta)


def em_batch(
    m: Model,
    thetas: ThetaLike,
    x: Any,
    *,
    temperature: ArrayLike = 1.0,
    weights: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    tol: Any = 1e-10,
    max_steps: ArrayLike = 1000,
    missing: bool = False,
    accelerate: Any = None,
    mesh: Mesh | None = None,
    progress: bool = False,
) -> Fit:
    """Many fits of the same data: every entry of `thetas` has a leading lane axis. Equals `vmap(em)`.

    Each lane costs its own iterations only, while `vmap` of the loop runs all lanes until the slowest is
    done.

    Args:
        m: a mixture or a program.
        thetas: the starts: θ with a leading axis of lanes on every entry.
        x: the data, as for `em`.
        temperature: T ≥ 0, one for all or one per lane.
        weights: w (N,) ≥ 0, or a row of them per lane, (lanes, N): many data sets that are the same rows, each counted
            otherwise.
        labels: known components (N,), −1 where unknown.
        tol, max_steps, missing: as for `em`, of each lane.
        accelerate: None, `jaxem.squarem()` or `jaxem.anderson()`.
        mesh: devices to spread the lanes over; where there are fewer lanes than devices, or x is sharded already, its
            rows are spread instead.
        progress: show a tqdm bar of lanes.

    Returns:
        A `Fit` whose every field has a leading axis of lanes.

    >>> import jax, jaxem
    >>> from jaxem.families import gaussian
    >>> x = jax.random.normal(jax.random.key(0), (100, 2))
    >>> keys = jax.random.split(jax.random.key(1), 8)
    >>> starts = jax.vmap(lambda key: jaxem.inits.random_points(gaussian.isotropic, key, x, 3))(keys)
    >>> fits = jaxem.em_batch(gaussian.isotropic, starts, x)
    >>> jaxem.best(fits).theta["mu"].shape
    (3, 2)
    """
    m = for_rows(m, x, missing, of_a_fit=True)
    w = None if weights is None else raw("weights", weights)
    each = w if w is not None and w.ndim == 2 else None  # (lanes, N)
    run = _prepare_run(
        m,
        thetas,
        x,
        temperature=temperature,
        weights=weights if each is None else each.sum(axis=0),  # a row counts if it does in any lane
        labels=labels,
        tol=tol,
        max_steps=max_steps,
        batched=True,
    )
    if not jax.tree.leaves(run.theta):
        raise ValueError("thetas: this model has no parameters, so that there is nothing to make lanes of; use em")
    if each is not None:
        run = run._replace(data=_lanes.weighed(each, run.theta, run.data))
    accelerate = acceleration.check(m, accelerate)
    rows, lanes = devices.meshes_for_lanes(m, run.data, len(jax.tree.leaves(run.theta)[0]), mesh)
    if rows and each is not None:
        raise ValueError(
            "weights: of each lane, they cannot be spread over a mesh by rows; use fewer devices than lanes"
        )
    rest = devices.replicated((run.theta, run.tol, run.max_steps), rows or lanes)
    data = devices.replicated(laid(m, run.theta, run.data, rows), lanes)
    given, traced = (rest[0], data), is_traced(run.theta, data)
    theta, data = lax.stop_gradient(given) if traced else given
    args = (m, theta, data, *rest[1:], gain_is_small, lanes, _lanes.slots_here(run.data.x), accelerate)
    if switch("progress", progress):
        _not_traced(run)
        fits = _lanes.run_in_groups(*args)
    else:
        fits = _lanes.run_lanes(*args)
    if traced:
        fits = _lanes.at_fixed_points(m, *given, fits)
    blame_x(run.data.x, fits.free_energy)
    return remembered(fits, x, thetas)


def kmeans(
    x: Any,
    mu: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    tol: Any = 0.0,
    max_steps: ArrayLike = 1000,
    empty: str = "keep",
    accelerate: Any = None,
    mesh: Mesh | None = None,
) -> Fit:
    """Lloyd's k-means from the centres `mu` (K, D): hard EM of `isotropic` with π = 1/K and σ = 1 held.

    Stops when no centre changes, up to the rounding of a mean. Ties go to the lowest index. For many starts, `vmap`
    over `mu`. `weights` and `mesh` as in `em`. Its derivative in x and weights is that of the means of the clusters as
    they are: in the start it is 0, and so is, almost everywhere, that of who is in which.

    Args:
        x: the data, (N, D), or (N,) for D = 1.
        mu: where to start, (K, D).
        weights: w (N,) ≥ 0; a centre is the weighted mean of its rows.
        tol: stop also when a step lowers J by at most 2·tol for each unit of weight, in squared units of x.
        max_steps: most M-steps to do; 0 only evaluates.
        empty: an empty cluster can "keep" its centre, or "relocate" it to the row that lies farthest from its own,
            as scikit-learn does (on one device).
        accelerate: None; what ends after finitely many steps needs no guess at its limit.
        mesh: devices to spread the rows over.

    >>> import jax.numpy as jnp, jaxem
    >>> x = jnp.array([[0.0], [1.0], [10.0], [11.0]])
    >>> fit = jaxem.kmeans(x, jnp.array([[0.0], [1.0]]))
    >>> fit.theta["mu"].tolist(), float(jaxem.distortion(x, fit.theta["mu"]))
    ([[0.5], [10.5]], 1.0)
    """
    one_of("empty", empty, ("keep", "relocate"))
    nats_left.refuse("kmeans", tol, "it ends where no centre changes, with nothing left to gain nearby")
    acceleration.refuse("kmeans", accelerate, "it ends after finitely many steps, at a point that needs no guess")
    relocates = empty == "relocate"
    if relocates and mesh is not None:
        raise ValueError('mesh: empty="relocate" looks for the farthest row on one device; leave mesh out')
    given = x
    x, w = rows_and_weights(x, weights)
    mu = prepare_centres("mu", mu, x)
    K, unit = mu.shape[0], np.ones((), mu.dtype)
    if is_concrete(mu):
        unit = np.asarray(unit_of(jnp.max(jnp.abs(mu))))
    if unit != 1:  # which hard assignments do not depend on, but squares have to fit the precision
        fit = kmeans(
            x / unit, mu / unit, w, tol=tol / float(unit) / float(unit), max_steps=max_steps, empty=empty, mesh=mesh
        )
        return remembered(_in_unit(fit, unit, x, w), given, None)
    theta = {"pi": jnp.full(K, 1 / K, mu.dtype), "mu": mu, "sigma": jnp.ones((), mu.dtype)}
    m = gaussian.isotropic.hold("pi", "sigma")
    m = m.but(hard=True, maximizer=relocate if relocates else None)
    run = _prepare_run(m, theta, x, temperature=0.0, weights=w, tol=tol, max_steps=max_steps)
    at_rest_only = is_concrete(run.tol) and not np.any(run.tol)
    stop = centres_at_rest if at_rest_only else centres_at_rest_or_gain_is_small
    if not relocates:
        return remembered(_fit(m, run, stop, mesh), given, None)
    fit = loop.run(m, *lax.stop_gradient(run), stop)
    if is_traced(run):
        fit = at_the_fixed_point(m, run.theta, run.data, fit)
    blame_x(run.data.x, fit.free_energy)
    return remembered(fit, given, None)


def _in_unit(fit: Fit, unit: np.ndarray, x: Array, w: Array | None) -> Fit:
    """k-means of x / unit as that of x: F = C − J/2, with C = W(log 1/K − (D/2) log 2π)."""
    K, D = fit.theta["mu"].shape
    C = (x.shape[0] if w is None else jnp.sum(w)) * (-np.log(K) - D / 2 * np.log(2 * np.pi))
    square = np.asarray(unit, float) ** 2
    fit = fit._replace(
        theta=fit.theta | {"mu": fit.theta["mu"] * unit},
        free_energy=(C + (fit.free_energy - C) * square).astype(unit.dtype),
        gain=(fit.gain * square).astype(unit.dtype),
        rounding=None if fit.rounding is None else (fit.rounding * square).astype(unit.dtype),
    )
    if is_concrete(fit.free_energy) and not np.isfinite(fit.free_energy):
        raise ValueError(f"x: J, in squared units of x, does not fit {unit.dtype}; {RESCALE}")
    return fit
