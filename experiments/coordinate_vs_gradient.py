"""Coordinate ascent against gradient ascent on the same F(μ, γ): steps and time to the same height.

    python experiments/coordinate_vs_gradient.py [--seed S] [--out DIR] [--quick] [--no-plot]

Equal weights and σ are held; the free variables are the centres μ and the assignment γ, and the objective is eq:F,

    F_T(μ, γ) = Σ_nk γ_nk ℓ_nk(μ) − T Σ_nk γ_nk log γ_nk.

EM maximises it over γ, then over μ, each in closed form. Joint gradient ascent moves both at once, γ = softmax(logits)
row by row, by optax's Adam (each of several rates) and L-BFGS. It is slow where γ is nearly one-hot, as
∂F/∂logit_nk = γ_nk (∂F/∂γ_nk − Σ_j γ_nj ∂F/∂γ_nj) vanishes there, right or wrong. In between, generalised EM takes its
M-step by L-BFGS (`jaxem.gradient_m_step`). All start from the same (μ, γ): μ at random rows, γ at its posterior there.

Let θ* be the highest of the points that EM reaches from the ends of all methods. The theorem is C1:

    F_T(μ, γ) ≤ T Σ_n log Σ_k e^{ℓ_nk(μ)/T} = L_T(μ) ≤ L_T(θ*)

so no path through the space of (μ, γ), however it is climbed, goes higher than EM's fixed point; and since EM is one
step of both blocks, ∇_μ F = 0 and ∇_γ F = 0 there, by `jax.grad`. A method has arrived once F ≥ F* − 1e-8 |F*|, and
then δ = F* − F bounds where it can be: ‖μ − μ*‖ ≤ √(2δ/λ_min(−∇²L_T(θ*))), to leading order. So arriving means
arriving at the same optimum, and the times are times to the same answer.

Writes DIR/coordinate_vs_gradient.json, .npz, .pdf and .png. Exits 0 when every claim holds, 1 when one fails, 2 for bad
arguments. Times vary; everything else is fixed by --seed.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxem
from jaxem import limits
from jaxem.families import gaussian

from _command import leave, parse
from _data import load
from _results import Claim, as_json, print_claims, provenance, writable_folder, written_together
from benchmarks._timing import compiled, measure

M = gaussian.isotropic.hold("pi", "sigma")
GEM_STEPS = 5  # steps of L-BFGS in one M-step of generalised EM
GEM = jaxem.gradient_m_step(M, num_steps=GEM_STEPS)
CLOSE = 1e-8  # a method has arrived once F ≥ F* − CLOSE·|F*|
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)  # Adam's


class Budget(NamedTuple):
    """How long each method may climb, and how often it is timed."""

    em: int = 2_000
    gem: int = 1_000
    adam: int = 20_000
    lbfgs: int = 20_000
    rates: tuple[float, ...] = RATES
    repeats: int = 7


QUICK = Budget(em=600, gem=200, adam=2_000, lbfgs=400, rates=(1e-2, 1e-1), repeats=2)


class Problem(NamedTuple):
    """Data, the start with its held σ, and T."""

    x: jax.Array  # (N, D)
    theta: dict[str, jax.Array]
    temperature: jax.Array


class Point(NamedTuple):
    """The free variables of joint gradient ascent."""

    mu: jax.Array  # (K, D)
    logits: jax.Array  # (N, K), γ = softmax(logits)


class Trace(NamedTuple):
    """What a method did, one entry a step; entry 0 is the start."""

    value: np.ndarray  # F(μ_t, γ_t)
    bound: np.ndarray  # L_T(μ_t), the right side of C1
    evaluations: np.ndarray  # passes over the data up to entry t: E-steps, or F with its gradient
    mu: np.ndarray  # (K, D), where it ended


# ---- the problems


def problems(seed: int, quick: bool) -> dict[str, Problem]:
    """Old Faithful with σ below its first split, and three overlapping components; at T = 1 and below."""
    start, draw = jax.random.split(jax.random.key(seed))
    geyser = jnp.asarray(load("old_faithful").x)
    overlapping = overlapping_mixture(draw, 200 if quick else 1_000)

    def problem(x: jax.Array, num_components: int, sigma: float, temperature: float) -> Problem:
        theta = jaxem.inits.random_points(M, start, x, num_components)
        return Problem(x, theta | {"sigma": jnp.asarray(sigma)}, jnp.asarray(temperature))

    return {
        "Old Faithful, T = 1": problem(geyser, 2, 0.5, 1.0),
        "Old Faithful, T = 0.3": problem(geyser, 2, 0.5, 0.3),
        "three overlapping components, T = 1": problem(overlapping, 3, 1.0, 1.0),
        "three overlapping components, T = 0.3": problem(overlapping, 3, 1.0, 0.3),
    }


def overlapping_mixture(key: jax.Array, num_points: int) -> jax.Array:
    """Three unit Gaussians of equal weight on a circle of radius 1: 1.7 standard deviations apart."""
    angle = 2 * jnp.pi * jnp.arange(3) / 3
    mu = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
    theta = {"pi": jnp.full(3, 1 / 3), "mu": mu, "sigma": jnp.ones(())}
    return jaxem.sample(gaussian.isotropic, theta, key, num_points)[0]


def height(problem: Problem, point: Point) -> jax.Array:
    """F_T(μ, γ) (eq:F)."""
    table = jaxem.log_joint(M, problem.theta | {"mu": point.mu}, problem.x)
    return jaxem.free_energy(table, jax.nn.softmax(point.logits, axis=-1), problem.temperature)


def ceiling(problem: Problem, mu: jax.Array) -> jax.Array:
    """L_T(μ) = T Σ_n log Σ_k e^{ℓ_nk/T}, the maximum of F over γ (eq:bound)."""
    scaled = jaxem.log_joint(M, problem.theta | {"mu": mu}, problem.x) / problem.temperature
    return problem.temperature * jnp.sum(jax.nn.logsumexp(scaled, axis=-1))


def at_posterior(problem: Problem, mu: jax.Array) -> Point:
    """(μ, γ(μ)), an E-step as a point of the joint space."""
    table = jaxem.log_joint(M, problem.theta | {"mu": mu}, problem.x)
    return Point(mu, jax.nn.log_softmax(table / problem.temperature, axis=-1))


# ---- joint gradient ascent


class Climb(NamedTuple):
    """The carry of joint gradient ascent; F and its gradient are those at `point`."""

    point: Point
    state: Any  # the optimiser's
    value: jax.Array
    gradient: Point
    evaluations: jax.Array


def adam(rate: jax.Array) -> optax.GradientTransformationExtraArgs:
    return optax.with_extra_args_support(optax.adam(rate))


def lbfgs(rate: jax.Array) -> optax.GradientTransformationExtraArgs:
    """optax's L-BFGS with its zoom line search, which leaves no rate to choose."""
    return optax.lbfgs()


def gradient_ascent(problem: Problem, optimizer: Any) -> tuple[Callable, Callable]:
    """(initial, step) of joint ascent on F/N."""
    num_rows = len(problem.x)

    def loss(point: Point) -> jax.Array:
        return -height(problem, point) / num_rows

    def evaluate(point: Point, state: Any, evaluations: jax.Array) -> Climb:
        searched = optax.tree.get(state, "num_linesearch_steps", None)
        if searched is None:
            value, gradient = jax.value_and_grad(loss)(point)
        else:  # the line search has evaluated this point: its last step
            value, gradient = optax.value_and_grad_from_state(loss)(point, state=state)
        return Climb(point, state, -num_rows * value, gradient, evaluations + (1 if searched is None else searched))

    def initial(point: Point) -> Climb:
        return evaluate(point, optimizer.init(point), jnp.zeros((), int))._replace(evaluations=jnp.ones((), int))

    def step(climb: Climb) -> Climb:
        point, state, value, gradient, evaluations = climb
        known = {"value": -value / num_rows, "grad": gradient, "value_fn": loss}
        updates, state = optimizer.update(gradient, state, point, **known)
        return evaluate(optax.apply_updates(point, updates), state, evaluations)

    return initial, step


class Run(NamedTuple):
    """A finished climb: where it ended, and its history up to `steps`."""

    value: jax.Array
    mu: jax.Array
    steps: jax.Array
    history: dict[str, jax.Array]  # value, bound, evaluations, each (room,)


def joint_run(
    problem: Problem, rate: jax.Array, target: jax.Array, most: jax.Array, record: jax.Array, optimizer: Any, room: int
) -> Run:
    """Climb until F ≥ target or `most` steps are done. `record`: also evaluate L_T at every step, for C1.

    One program for the trace (target = ∞, recorded) and for the race that is timed.
    """
    initial, step = gradient_ascent(problem, optimizer(rate))

    def written(history: dict[str, jax.Array], climb: Climb, index: jax.Array) -> dict[str, jax.Array]:
        bound = jax.lax.cond(record, lambda mu: ceiling(problem, mu), lambda mu: climb.value, climb.point.mu)
        entry = {"value": climb.value, "bound": bound, "evaluations": climb.evaluations}
        return {name: history[name].at[index].set(entry[name]) for name in history}

    def body(carry: tuple) -> tuple:
        climb, steps, history = carry
        climb = step(climb)
        return climb, steps + 1, written(history, climb, steps + 1)

    start, zero = initial(at_posterior(problem, problem.theta["mu"])), jnp.zeros((), int)
    empty = {"value": jnp.zeros(room), "bound": jnp.zeros(room), "evaluations": jnp.zeros(room, int)}
    climb, steps, history = jax.lax.while_loop(
        lambda carry: (carry[0].value < target) & (carry[1] < most), body, (start, zero, written(empty, start, zero))
    )
    return Run(climb.value, climb.point.mu, steps, history)


class Racer(NamedTuple):
    """A compiled method: its trace, and the call to time, given the target and the steps that the trace needed."""

    trace: Trace
    race: Callable[[float, int], tuple[jax.Array, jax.Array]]  # (target, steps) → F, μ
    compile_seconds: float


def joint_racers(problem: Problem, optimizer: Any, rates: dict[str, float], num_steps: int) -> dict[str, Racer]:
    """One compilation for all rates."""
    example = (problem, jnp.zeros(()), jnp.asarray(jnp.inf), jnp.asarray(num_steps), jnp.asarray(True))
    run, compile_seconds = compiled(partial(joint_run, optimizer=optimizer, room=num_steps + 1), *example)

    def racer(rate: float) -> Racer:
        end = jax.tree.map(np.asarray, run(problem, jnp.asarray(rate), *example[2:]))
        trace = Trace(**{name: values[: end.steps + 1] for name, values in end.history.items()}, mu=end.mu)

        def race(target: float, steps: int) -> tuple[jax.Array, jax.Array]:
            ended = run(problem, jnp.asarray(rate), jnp.asarray(target), jnp.asarray(steps), jnp.asarray(False))
            return ended.value, ended.mu

        return Racer(trace, race, compile_seconds)

    return {name: racer(rate) for name, rate in rates.items()}


# ---- coordinate ascent


@partial(jax.jit, static_argnames="num_steps")
def coordinate_path(m: jaxem.Mixture, problem: Problem, num_steps: int) -> jaxem.Path:
    return jaxem.em_path(m, problem.theta, problem.x, num_steps=num_steps, temperature=problem.temperature)


def coordinate_run(problem: Problem, num_steps: jax.Array, m: jaxem.Mixture) -> tuple[jax.Array, jax.Array]:
    """`jaxem.em` for a number of steps."""
    fit = jaxem.em(m, problem.theta, problem.x, temperature=problem.temperature, tol=0.0, max_steps=num_steps)
    return fit.free_energy, fit.theta["mu"]


def coordinate_racer(problem: Problem, m: jaxem.Mixture, num_steps: int, passes: int) -> Racer:
    """Entry t of the trace is F after t M-steps, each of `passes` passes over the data, and an E-step."""
    path = coordinate_path(m, problem, num_steps + 1)
    value = np.asarray(path.after_e)
    trace = Trace(value, value, 1 + passes * np.arange(num_steps + 1), np.asarray(path.theta["mu"][-1]))
    run, compile_seconds = compiled(partial(coordinate_run, m=m), problem, jnp.asarray(num_steps))
    return Racer(trace, lambda target, steps: run(problem, jnp.asarray(steps)), compile_seconds)


# ---- one problem


def run_case(name: str, problem: Problem, budget: Budget) -> dict[str, Any]:
    """Every method on one problem: its trace, its steps and seconds to the target, and what the claims need."""
    racers = {
        "EM": coordinate_racer(problem, M, budget.em, 1),
        f"GEM, {GEM_STEPS} L-BFGS": coordinate_racer(problem, GEM, budget.gem, GEM_STEPS + 1),
        **joint_racers(problem, adam, {f"Adam {rate:g}": rate for rate in budget.rates}, budget.adam),
        **joint_racers(problem, lbfgs, {"L-BFGS": 0.0}, budget.lbfgs),
    }
    traces = {method: racer.trace for method, racer in racers.items()}
    optimum, top = highest(problem, traces, budget.em)
    target = top - CLOSE * abs(top)
    rows = {method: as_row(method, trace, target) for method, trace in traces.items()}
    min((row for method, row in rows.items() if method.startswith("Adam")), key=merit)["chosen"] = True
    for method, row in rows.items():
        if row["chosen"]:
            row |= timed(racers[method], row, target, optimum, budget.repeats)
    return {
        "case": name,
        "N": len(problem.x),
        "D": problem.x.shape[1],
        "K": len(optimum),
        "sigma": float(problem.theta["sigma"]),
        "temperature": float(problem.temperature),
        "F_start": float(traces["EM"].value[0]),
        "F_star": top,
        "target": target,
        "mu_star": np.asarray(optimum),
        "rows": list(rows.values()),
        "checks": checks(problem, traces, rows, optimum, top),
        "traces": traces,
    }


def highest(problem: Problem, traces: dict[str, Trace], num_steps: int) -> tuple[jax.Array, float]:
    """θ* and F* = L_T(θ*): the highest of the points that EM reaches from the ends of all methods."""

    @jax.jit
    def polish(mu: jax.Array) -> tuple[jax.Array, jax.Array]:
        end = coordinate_path(M, problem._replace(theta=problem.theta | {"mu": mu}), num_steps + 1).theta["mu"][-1]
        return end, ceiling(problem, end)

    ends = [polish(jnp.asarray(trace.mu)) for trace in traces.values() if np.isfinite(trace.mu).all()]
    top = max(float(value) for _, value in ends)
    # ends that differ by rounding are one: the first is EM's own
    return next((mu, float(value)) for mu, value in ends if float(value) >= top - 1e-13 * abs(top))


def as_row(method: str, trace: Trace, target: float) -> dict[str, Any]:
    """Steps to the target, None where it is not reached."""
    arrived = np.flatnonzero(trace.value >= target)
    first = int(arrived[0]) if arrived.size else None
    return {
        "method": method,
        "chosen": not method.startswith("Adam"),
        "steps": first,
        "steps_tried": len(trace.value) - 1,
        "passes": int(trace.evaluations[first if arrived.size else -1]),
        "F_best": float(np.nanmax(trace.value)),
        "F": None,
        "distance": None,
        "compile_seconds": None,
        "seconds": None,
        "quartiles": None,
    }


def merit(row: dict[str, Any]) -> tuple[float, float]:
    """Fewest steps to the target first; of those that never arrive, the highest."""
    return (np.inf if row["steps"] is None else row["steps"], -row["F_best"])


def timed(racer: Racer, row: dict, target: float, optimum: jax.Array, repeats: int) -> dict[str, Any]:
    """Compiled seconds from the common start to the target, or to the end of the budget."""
    steps = row["steps_tried"] if row["steps"] is None else row["steps"]
    # who missed is timed once, for the figure's axis only
    timing = measure(racer.race, target, steps, repeats=1 if row["steps"] is None else repeats)
    value, mu = timing.value
    return {
        "F": float(value),
        "distance": distance(np.asarray(mu), np.asarray(optimum)),
        "compile_seconds": racer.compile_seconds,
        "seconds": timing.median,
        "quartiles": timing.quartiles,
    }


def distance(mu: np.ndarray, other: np.ndarray) -> float:
    """‖μ − μ*‖, components matched."""
    orders = itertools.permutations(range(len(mu)))
    return min(float(np.linalg.norm(mu[list(order)] - other)) for order in orders)


# ---- the claims


def checks(problem: Problem, traces: dict, rows: dict, optimum: jax.Array, top: float) -> dict[str, limits.Bound]:
    """Each claim's worst value and its bound on this problem."""
    rounding = limits.ROUNDING * float(jnp.finfo(problem.x.dtype).eps)
    scale = 1 + float(jnp.sum(jnp.abs(jaxem.log_joint(M, problem.theta, problem.x))))
    joint = {name: trace for name, trace in traces.items() if name.startswith(("Adam", "L-BFGS"))}
    starts = [trace.value[0] for trace in traces.values()]
    arrived = [row for row in rows.values() if row["seconds"] is not None and row["steps"] is not None]

    @jax.jit
    def at_limit(mu: jax.Array) -> tuple[Point, Point, jax.Array]:
        point = at_posterior(problem, mu)
        gradient = jax.grad(partial(height, problem))(point)
        curvature = jax.hessian(lambda flat: ceiling(problem, flat.reshape(mu.shape)))(mu.ravel())
        return point, gradient, jnp.min(jnp.linalg.eigvalsh(-curvature))

    point, gradient, curvature = at_limit(optimum)
    num_rows, sigma = len(problem.x), float(problem.theta["sigma"])
    mu_scale = 1 + num_rows * float(jnp.max(jnp.abs(problem.x))) / sigma**2  # Σγ|x − μ|/σ², at its largest
    table = jaxem.log_joint(M, problem.theta | {"mu": optimum}, problem.x)
    gamma_scale = 1 + float(jnp.max(jnp.abs(jax.nn.softmax(point.logits) * table)))
    reach = float(np.sqrt(2 * CLOSE * abs(top) / curvature))  # ‖μ − μ*‖ ≤ √(2δ/λ_min)
    return {
        "start": limits.Bound(np.ptp(starts), rounding * scale),
        "C1": limits.Bound(max(np.nanmax(t.value - t.bound) for t in joint.values()), rounding * scale),
        "top": limits.Bound(max(np.nanmax(t.value) for t in joint.values()) - top, rounding * scale),
        "EM": limits.Bound(1 - rows["EM"]["F"] / top if top > 0 else rows["EM"]["F"] / top - 1, CLOSE + rounding),
        "grad_mu": limits.Bound(float(jnp.max(jnp.abs(gradient.mu))), rounding * mu_scale),
        "grad_gamma": limits.Bound(float(jnp.max(jnp.abs(gradient.logits))), rounding * gamma_scale),
        "same": limits.Bound(max((row["distance"] for row in arrived), default=np.nan), 1.5 * reach),
    }


STATEMENTS = {
    "start": "all methods start at the same F",
    "C1": "joint ascent: F(μ_t, γ_t) ≤ L_T(μ_t) at every step of every optimiser and rate",
    "top": "joint ascent: F(μ_t, γ_t) ≤ L_T(θ*), no climb goes above EM's fixed point",
    "EM": f"EM arrives: (F* − F)/|F*| ≤ {CLOSE:g}",
    "grad_mu": "at EM's limit ∇_μ F = 0, by jax.grad",
    "grad_gamma": "at EM's limit ∇_γ F = 0, by jax.grad through the logits",
    "same": "who arrives is at the same optimum: ‖μ − μ*‖ ≤ 1.5 √(2·1e-8|F*|/λ_min(−∇²L_T))",
}


def claims(cases: list[dict[str, Any]]) -> list[Claim]:
    """Over the problems, the value nearest to its bound, or furthest above it."""

    def worst(name: str) -> Claim:
        bounds = [case["checks"][name] for case in cases]
        value, bound = max(bounds, key=lambda b: np.inf if np.isnan(b.value) else b.value / b.bound)
        return Claim(name, STATEMENTS[name], float(value), float(bound))

    return [worst(name) for name in STATEMENTS]


# ---- the command line


def report(case: dict[str, Any]) -> None:
    """Steps, passes over the data and seconds to the same F."""
    print(
        f"\n{case['case']}: N = {case['N']}, D = {case['D']}, K = {case['K']}, σ = {case['sigma']:g} held; from "
        f"F = {case['F_start']:.6f} to F* = {case['F_star']:.9f}, target F* − {CLOSE:g}|F*| = {case['target']:.9f}"
    )
    print(f"{'method':<16}{'steps':>14}{'passes':>9}{'ms':>9}{'quartiles':>17}{'compile s':>11}{'F reached':>18}")
    for row in case["rows"]:
        missed = row["steps"] is None
        steps = f"> {row['steps_tried']}" if missed else str(row["steps"])
        reached = row["F_best"] if missed or row["F"] is None else row["F"]
        cells = f"{row['method']:<16}{steps:>14}{'–' if missed else row['passes']:>9}"
        if row["seconds"] is not None:
            low, high = (1e3 * q for q in row["quartiles"])
            cells += f"{1e3 * row['seconds']:>9.2f}{f'{low:.2f}–{high:.2f}':>17}{row['compile_seconds']:>11.2f}"
        else:
            cells += " " * 37
        print(f"{cells}{reached:>18.9f}{'   missed' if missed else ''}")


def run(seed: int, quick: bool) -> list[dict[str, Any]]:
    wanted = problems(seed, quick)
    if quick:
        wanted = dict(list(wanted.items())[2:3])
    cases = []
    for name, problem in wanted.items():
        cases.append(run_case(name, problem, QUICK if quick else Budget()))
        report(cases[-1])
    return cases


def main(arguments: list[str] | None = None) -> int:
    options = parse("coordinate_vs_gradient", __doc__, arguments)
    jax.config.update("jax_enable_x64", True)
    clock = time.perf_counter()
    try:
        folder = writable_folder(options.out)
    except OSError as error:
        reason = error.strerror or error
        print(f"coordinate_vs_gradient: --out: cannot write to {options.out}: {reason}", file=sys.stderr)
        return 2
    try:
        cases = run(options.seed, options.quick)
        verdicts = claims(cases)
        print("\nevery method from the same start; seconds are warm medians, compilation apart\n")
        print_claims(verdicts)
        save(cases, verdicts, options, folder, time.perf_counter() - clock)
    except KeyboardInterrupt:
        print("\ncoordinate_vs_gradient: interrupted, nothing written", file=sys.stderr)
        return 130
    print(f"wrote {folder}/coordinate_vs_gradient.{{json,npz{'' if options.no_plot else ',pdf,png'}}}")
    return 0 if all(claim.holds for claim in verdicts) else 1


def save(cases: list[dict], verdicts: list[Claim], options: argparse.Namespace, folder: Any, seconds: float) -> None:
    """All files or none."""
    document = {
        "config": {"seed": options.seed, "quick": options.quick, "close": CLOSE, "gem_steps": GEM_STEPS},
        "cases": [{name: case[name] for name in case if name not in ("traces", "checks")} for case in cases],
        "claims": [claim.as_json() for claim in verdicts],
        "provenance": provenance() | {"seconds": seconds},
    }
    arrays = {
        f"{case['case']} | {method} | {field}": value
        for case in cases
        for method, trace in case["traces"].items()
        for field, value in trace._asdict().items()
    }
    with written_together(folder) as write:
        write("coordinate_vs_gradient.json", lambda path: path.write_text(as_json(document)))
        write("coordinate_vs_gradient.npz", lambda path: np.savez_compressed(path, **arrays))
        if not options.no_plot:
            import _style

            figure = draw(cases)
            for ending in ("pdf", "png"):
                write(f"coordinate_vs_gradient.{ending}", partial(_style.save, figure))


# ---- the figure


def draw(cases: list[dict[str, Any]]) -> Any:
    """F* − F, a row per problem: against steps, and against time."""
    import matplotlib

    from _style import BLUE, DOUBLE, GREEN, GREY, ORANGE, RED, STYLE, page

    styles = {  # EM thin over the broad GEM: they often coincide
        "GEM": {"color": GREEN, "linewidth": 3.5, "alpha": 0.5, "label": f"EM, M-step by {GEM_STEPS} steps of L-BFGS"},
        "Adam": {"color": ORANGE, "label": "joint, Adam, best rate (faint: others)"},
        "L-BFGS": {"color": RED, "label": "joint, L-BFGS"},
        "EM": {"color": BLUE, "label": "EM", "zorder": 3},
    }
    with matplotlib.rc_context(STYLE):
        figure = page(DOUBLE, 1.1 + 2.05 * len(cases))
        axes = figure.subplots(len(cases), 2, squeeze=False, sharey="row")
        for (left, right), case in zip(axes, cases, strict=True):
            top, allowed = case["F_star"], case["F_star"] - case["target"]
            for row in case["rows"]:
                short = top - np.fmax.accumulate(case["traces"][row["method"]].value)
                steps, style = np.arange(1, len(short) + 1), styles[row["method"].split()[0].rstrip(",")]
                if not row["chosen"]:
                    left.plot(steps, short, color=style["color"], linewidth=0.6, alpha=0.4, zorder=1)
                    continue
                timed = row["steps_tried"] if row["steps"] is None else row["steps"]
                left.plot(steps, short, **style)
                right.plot(steps * 1e3 * row["seconds"] / max(timed, 1), short, **style)
                if row["method"].startswith("Adam"):
                    right.set_title(f"Adam's best rate: {row['method'].split()[1]}")
            for axis in (left, right):
                axis.axhline(allowed, color=GREY, linewidth=0.8, linestyle="--", label=r"target, $10^{-8}|F^\star|$")
                axis.set(xscale="log", yscale="log", ylim=(allowed / 30, 3 * (top - case["F_start"])))
            left.set_title(rf"{case['case']}, $\sigma$ = {case['sigma']:g}")
            left.set_ylabel(r"$F^\star - F$  (nats)")
        axes[-1, 0].set_xlabel("step, from 1 at the start")
        axes[-1, 1].set_xlabel("milliseconds, compiled")
        handles = {line.get_label(): line for line in axes[0, 1].get_lines()}
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3)
        figure.suptitle(r"Coordinate ascent (EM) and joint gradient ascent on the same $F(\mu, \gamma)$", fontsize=9.5)
    return figure


if __name__ == "__main__":
    leave(main())
