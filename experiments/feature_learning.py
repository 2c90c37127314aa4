"""Learn features in which a mixture fits, by gradients through EM's fixed point; and tune σ on rows it has not seen.

    python experiments/feature_learning.py [--seed S] [--out DIR] [--quick] [--no-plot]

Rows lie on five curled arms, which Gaussians do not fit. An invertible network f_w (affine coupling layers; Dinh et al.
2017) maps them to features, a mixture is fitted to those of the training rows, and w climbs the density of others:

    V(w) = mean_v [log p(f_w(x_v) | θ*(w)) + log |det ∂f_w/∂x|],    θ*(w) = argmax_θ Σ_t log p(f_w(x_t) | θ)

The determinant makes it a density of x, so that features cannot collapse, and the raw rows (f the identity, where w
starts) are compared in the same nats. ∇V needs ∂θ*/∂w, which `jax.grad` through `jaxem.em` takes from the implicit
function theorem (eq:fixed); it is held against central differences, and against unrolling: the derivative of n steps of
`jaxem.em_path`, whose error falls like ρⁿ while its memory grows like n. Memory is what XLA's compiled program
allocates beside its arguments, and the implicit one is a single program whatever the steps of its fit; times, the least
of some repeats, depend on the machine and are told, not claimed.

σ of a round mixture, held in its fit, is tuned by the same kind of gradient, by the secant rule on the slope of the
held-out likelihood in log σ, and must lie where a grid has its maximum.

Writes DIR/feature_learning.json, .npz, .pdf and .png. Exits 0 when every claim holds, 1 when one fails, 2 for bad
arguments.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from scipy.optimize import linear_sum_assignment

import jaxem
from jaxem.families import gaussian

from _command import Config, Result, command, leave
from _results import Claim
from benchmarks._timing import compiled, measure

M = gaussian.isotropic
HELD = M.hold("sigma")
ARMS, CURL = 5, 0.35
ROWS = {"train": 400, "validation": 400, "test": 2_000}
LAYERS, WIDTH = 8, 16  # of the network
STEPS, QUICK_STEPS, EVERY = 400, 60, 10  # of Adam
EARLY = (2, 5)  # gradients are compared after so many, from the θ* before
MOST, TOL = 5_000, 0.0  # of EM: to rounding
RATE = 5e-3
UNROLLED = (5, 10, 20, 40, 80, 160, 320)  # steps of EM
DIRECTIONS, H = 5, 1e-4  # of central differences
EXACT, QUOTIENT = 1e-6, 1e-5  # relative: θ* is known to 1e-8 or so, and a difference quotient divides that by H
REPEATS = 7
LOG_SIGMA = (np.log(0.15), np.log(0.6))
GRID = 61

Weights = list[dict[str, jax.Array]]
Theta = dict[str, jax.Array]


def pinwheel(rng: np.random.Generator, N: int) -> tuple[np.ndarray, np.ndarray]:
    """(x, arm): Gaussian arms, turned the farther the farther out (Johnson et al. 2016)."""
    arm = rng.integers(0, ARMS, N)
    along, across = 1 + 0.3 * rng.normal(size=N), 0.08 * rng.normal(size=N)
    angle = 2 * np.pi * arm / ARMS + CURL * np.exp(along)
    x = np.stack([along * np.cos(angle) - across * np.sin(angle), along * np.sin(angle) + across * np.cos(angle)], 1)
    return x, arm


def identity(key: jax.Array) -> Weights:
    """Coupling layers that change nothing yet."""

    def layer(key: jax.Array) -> dict[str, jax.Array]:
        into, shift = jax.random.normal(key, (2, WIDTH))
        return {"into": 2 * into, "shift": shift, "out": jnp.zeros((WIDTH, 2)), "constant": jnp.zeros(2)}

    return [layer(key) for key in jax.random.split(key, LAYERS)]


def features(w: Weights, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(f_w(x), log |det ∂f_w/∂x|): each layer scales and shifts one coordinate by functions of the other."""
    fixed, moved, log_det = x[:, 0], x[:, 1], jnp.zeros(len(x))
    for layer in w:
        hidden = jnp.tanh(fixed[:, None] * layer["into"] + layer["shift"])
        scale, shift = (hidden @ layer["out"] + layer["constant"]).T
        scale = jnp.tanh(scale)
        fixed, moved, log_det = moved * jnp.exp(scale) + shift, fixed, log_det + scale
    return jnp.stack([fixed, moved], axis=1), log_det


def log_density(w: Weights, theta: Theta, x: jax.Array) -> jax.Array:
    """log p(x_n) of every row."""
    z, log_det = features(w, x)
    return jax.nn.logsumexp(jaxem.log_joint(M, theta, z), axis=1) + log_det


def held_out(w: Weights, start: Theta, rows: dict[str, jax.Array], steps: int | None = None) -> tuple[jax.Array, Any]:
    """V(w), and the fit: by `em`, whose derivative is the fixed point's, or by so many steps of `em_path`."""
    z, _ = features(w, rows["train"])
    if steps is None:
        fit = jaxem.em(M, start, z, max_steps=MOST, tol=TOL)
        theta = fit.theta
    else:
        fit = None
        theta = jax.tree.map(lambda leaf: leaf[-1], jaxem.em_path(M, start, z, num_steps=steps).theta)
    return jnp.mean(log_density(w, theta, rows["validation"])), fit


slope = jax.value_and_grad(held_out, has_aux=True)


def learn(implicit: Any, w: Weights, start: Theta, rows: dict[str, jax.Array], steps: int) -> tuple[Any, Any, Any]:
    """Adam up V, every fit from the one before: (w and a θ before it, early; w and θ* at the end; all seen)."""
    climber = optax.adam(optax.cosine_decay_schedule(RATE, steps))
    density = jax.jit(lambda w, theta: {part: jnp.mean(log_density(w, theta, x)) for part, x in rows.items()})
    move = jax.jit(climber.update)
    state, theta, seen, middle = climber.init(w), start, [], {}
    for step in range(steps + 1):
        (_, fit), gradient = implicit(w, theta, rows)
        theta = fit.theta
        saw = {"step": step, "status": fit.status, "em_steps": fit.num_steps}
        seen.append(saw | (density(w, theta) if step % EVERY == 0 else {}))
        middle |= {step: (w, theta)} if step in EARLY else {}
        if step < steps:
            moves, state = move(jax.tree.map(jnp.negative, gradient), state)
            w = optax.apply_updates(w, moves)
    told = {name: np.array([float(saw[name]) for saw in seen if name in saw]) for name in seen[0]}
    return (middle[EARLY[1]][0], middle[EARLY[0]][1]), (w, theta), told


def accuracy(w: Weights, theta: Theta, x: jax.Array, arm: np.ndarray) -> float:
    """The share of rows in the component of their arm, components named as is best."""
    found = np.asarray(jnp.argmax(jaxem.log_joint(M, theta, features(w, x)[0]), axis=1))
    table = np.zeros((ARMS, ARMS))
    np.add.at(table, (found, arm), 1)
    return float(table[linear_sum_assignment(-table)].sum() / len(arm))


def gradients(implicit: Any, w: Weights, start: Theta, rows: dict[str, jax.Array], config: Config) -> dict[str, Any]:
    """∇V at w by each way: its distance from the implicit one, the bytes it takes, and seconds."""
    at, unravel = ravel_pytree(w)
    steps = UNROLLED[2::4] if config.quick else UNROLLED
    programs = [implicit, *(compiled(partial(slope, steps=n), w, start, rows)[0] for n in steps)]
    slopes = [ravel_pytree(program(w, start, rows)[1])[0] for program in programs]
    exact, size = np.asarray(slopes[0]), np.linalg.norm(slopes[0])
    theta = implicit(w, start, rows)[0][1].theta
    frozen = ravel_pytree(jax.grad(lambda w: jnp.mean(log_density(w, theta, rows["validation"])))(w))[0]
    directions = np.random.default_rng(config.seed).normal(size=(DIRECTIONS, at.size))
    directions[0] = exact
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    ends = [[float(implicit(unravel(at + h * d), start, rows)[0][0]) for h in (H, -H)] for d in directions]
    quotients = np.array([(above - below) / (2 * H) for above, below in ends])
    repeats = 1 if config.quick else REPEATS
    return {
        "differences": float(np.max(np.abs(quotients - directions @ exact)) / size),
        "frozen": float(np.linalg.norm(frozen - exact) / size),
        "unrolled": np.array(steps),
        "error": np.array([np.linalg.norm(other - exact) / size for other in slopes]),
        "bytes": np.array([program.memory_analysis().temp_size_in_bytes for program in programs]),
        "seconds": np.array([min(measure(program, w, start, rows, repeats=repeats).seconds) for program in programs]),
    }


def tuned(start: Theta, rows: dict[str, jax.Array]) -> dict[str, Any]:
    """σ by the secant rule on ∂V/∂log σ, and V on a grid of σ, each fit from the same θ."""

    def value(log_sigma: jax.Array) -> jax.Array:
        fit = jaxem.em(HELD, start | {"sigma": jnp.exp(log_sigma)}, rows["train"], max_steps=MOST, tol=TOL)
        return jaxem.log_likelihood(HELD, fit.theta, rows["validation"]) / len(rows["validation"])

    slope_of = jax.jit(jax.value_and_grad(value))
    before, here = LOG_SIGMA[1], LOG_SIGMA[1] - 0.1
    seen = [(before, *map(float, slope_of(before)))]
    while len(seen) < 30 and abs(here - before) > 1e-9:
        seen.append((here, *map(float, slope_of(here))))
        bend = (seen[-1][2] - seen[-2][2]) / (here - before)
        move = -seen[-1][2] / bend if bend < 0 else 0.1 * np.sign(seen[-1][2])  # where V is not concave: up
        before, here = here, here + float(np.clip(move, -0.3, 0.3))
    grid = np.linspace(*LOG_SIGMA, GRID)
    return {"path": np.array(seen), "grid": grid, "on_grid": np.array([float(slope_of(s)[0]) for s in grid])}


def run(config: Config) -> Result:
    rng = np.random.default_rng(config.seed)
    sets = {part: pinwheel(rng, N) for part, N in ROWS.items()}
    rows = {part: jnp.asarray(x) for part, (x, _) in sets.items()}
    raw = identity(jax.random.key(config.seed))
    first = jaxem.check(jaxem.fit(M, rows["train"], jax.random.key(config.seed), ARMS, starts=20))
    implicit = compiled(slope, raw, first.theta, rows)[0]
    early, learned, saw = learn(implicit, raw, first.theta, rows, QUICK_STEPS if config.quick else STEPS)
    found = gradients(implicit, *early, rows, config)
    mu = jnp.asarray([rows["train"][sets["train"][1] == k].mean(axis=0) for k in range(ARMS)])
    sigma = tuned({"pi": jnp.full(ARMS, 1 / ARMS), "mu": mu, "sigma": jnp.ones(())}, rows)
    x, arm = sets["test"]
    maps = {"raw": (raw, first.theta), "learned": learned}
    density = {name: np.asarray(log_density(*at, rows["test"])) for name, at in maps.items()}
    gain = density["learned"] - density["raw"]
    side = np.linspace(-2.6, 2.6, 160)
    plane = jnp.asarray(np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2))
    summary = {
        "raw": float(density["raw"].mean()),
        "learned": float(density["learned"].mean()),
        "gain_in_errors": float(gain.mean() / gain.std() * np.sqrt(len(gain))),
        "accuracy": {name: accuracy(*at, rows["test"], arm) for name, at in maps.items()},
        "weights": int(ravel_pytree(raw)[0].size),
        "steps": int(saw["step"][-1]),
        "em_steps": float(np.mean(saw["em_steps"])),
        "unfinished": int((saw["status"] != jaxem.Status.CONVERGED).sum()),
        "sigma": float(np.exp(sigma["path"][-1, 0])),
        "sigma_on_grid": float(np.exp(sigma["grid"][sigma["on_grid"].argmax()])),
        "evaluations": len(sigma["path"]),
    } | found
    arrays = {f"sigma_{name}": value for name, value in sigma.items()} | saw
    arrays |= {"x": x, "arm": arm, "side": side, "z": np.asarray(features(learned[0], rows["test"])[0])}
    for name, at in maps.items():
        arrays[f"plane_{name}"] = np.asarray(log_density(*at, plane)).reshape(len(side), -1)
        arrays |= {f"{entry}_{name}": np.asarray(value) for entry, value in at[1].items()}
    return Result(summary, claims(summary), arrays)


def claims(summary: dict[str, Any]) -> list[Claim]:
    """Of gradients, memory and held-out rows; none of times."""
    share, bytes_ = summary["accuracy"], summary["bytes"]
    apart = abs(np.log(summary["sigma"] / summary["sigma_on_grid"]))
    return [
        Claim("diff", "|implicit − central difference| over ‖∇V‖, worst of five", summary["differences"], QUOTIENT),
        Claim("unroll", "‖implicit − unrolled‖ over ‖∇V‖, the most steps", summary["error"][-1], EXACT),
        Claim("memory", "bytes of ∇V, implicit, over those of the most steps unrolled", bytes_[0] / bytes_[-1], 1),
        Claim("V", "log p of test rows, raw less learned, in standard errors", -summary["gain_in_errors"], -5),
        Claim("arms", "share of test rows in the right arm, raw less learned", share["raw"] - share["learned"], 0),
        Claim("σ", "|log σ by gradient − log σ on the grid|", apart, (LOG_SIGMA[1] - LOG_SIGMA[0]) / (GRID - 1)),
        Claim("end", "fits on the way that did not converge", summary["unfinished"], 0),
    ]


def report(summary: dict[str, Any]) -> None:
    share = summary["accuracy"]
    print(
        f"\n{summary['weights']} weights, {summary['steps']} steps of Adam, a fit takes {summary['em_steps']:.0f} of EM"
    )
    print("  on test rows     nats a row   in the right arm")
    for name in ("raw", "learned"):
        print(f"  {name:<16} {summary[name]:>10.3f} {100 * share[name]:>16.1f} %")
    print(f"\n  ∇V is off by {summary['frozen']:.2f} of its length where θ* is taken for a constant")
    print("  ∇V                   error       bytes          ms")
    names = ["implicit", *(f"{n} steps" for n in summary["unrolled"])]
    for name, *values in zip(names, summary["error"], summary["bytes"], 1e3 * summary["seconds"], strict=True):
        print("  {:<16} {:9.1e} {:11d} {:11.2f}".format(name, *values))
    print(
        f"\nσ = {summary['sigma']:.4f} by {summary['evaluations']} slopes, {summary['sigma_on_grid']:.4f} on the grid\n"
    )


def main(arguments: list[str] | None = None) -> int:
    return command("feature_learning", __doc__, run, report, arguments)


if __name__ == "__main__":
    leave(main())
