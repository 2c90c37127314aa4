"""The main job: sweep σ and certify that EM for σ²I Gaussians becomes k-means, claim by claim.

    python experiments/sigma_sweep.py [--data old_faithful|iris|blobs|PATH.csv|PATH.npy] [--components K]
           [--sigmas MAX MIN COUNT] [--restarts R] [--seed S] [--precision 32|64] [--out DIR] [--quick] [--no-plot]
           [--columns A,B,…] [--sep CHARACTER] [--index] [--no-standardise] [--full]

The data are standardised, unless told otherwise. At every σ, equal weights and σ held, EM runs from the same random
starts; the best fit is certified (C1–C15 of `jaxem.certify`, `jaxem.convergence_rate` and `jaxem.limits`). The last σ
is taken from the least gap along Lloyd's path, where EM must equal k-means iterate by iterate.

Writes DIR/sigma_sweep.json, .npz, .pdf and .png. Exits 0 when every claim holds, 1 when one fails, 2 for bad
arguments or data.
"""

import argparse
import sys
import time
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from _sigma_story import in_words, print_rows
from tqdm import tqdm

from jaxem import (
    Status,
    best,
    certify,
    convergence_rate,
    distortion,
    em_batch,
    em_path,
    inits,
    kmeans,
    limits,
    responsibilities,
    use_all_cores,
)
from jaxem.families import gaussian
from jaxem.families.gaussian import squared_distances

from _command import OneLineParser, check_seed, leave
from _data import DataError, Reading, load
from _results import Claim, as_json, print_claims, provenance, writable_folder, written_together

M = gaussian.isotropic.hold("pi", "sigma")  # only the centres move: the sources' setting
TEMPERATURE = 0.37  # for C14: any T other than 0 and 1
LLOYD_STEPS = 64  # the length of the paths compared in C11 and C15; Lloyd stops well before
MAX_STEPS = 5_000  # EM slows down near σ_c
MOST_SIGMAS = 10_000_000  # of a grid, and …
MOST_RESTARTS = 100_000  # … of starts, that memory holds
DISTINCT = 1e-3  # centroids nearer than this, in standard deviations of the data, count as one


class Config(NamedTuple):
    """Everything the result depends on."""

    data: str = "old_faithful"
    components: int = 2
    sigmas: tuple[float, float, int] | None = None  # MAX, MIN, COUNT; None: from diam(X) to the last σ
    restarts: int = 8
    seed: int = 0
    precision: int = 64
    quick: bool = False
    reading: Reading = Reading()


class Starts(NamedTuple):
    """Untied starts, the σ at which EM must be Lloyd's algorithm from all of them, and how many were redrawn."""

    mu: jax.Array  # (R, K, D)
    delta: jax.Array  # (R,) least gap along Lloyd's path
    sigma: jax.Array  # ()
    redrawn: int


def draw_starts(x: jax.Array, config: Config) -> Starts:
    """Random distinct rows as centres; a start whose Lloyd path meets a tie is drawn again."""
    keys = jax.random.split(jax.random.key(config.seed), 64 * config.restarts).reshape(64, config.restarts)

    @jax.jit
    def draw(keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        mu = jax.vmap(lambda key: inits.random_points(M, key, x, config.components)["mu"])(keys)
        return mu, jax.lax.map(lambda mu: limits.least_gap(x, mu, num_steps=LLOYD_STEPS), mu)

    # a gap below the rounding of the distances is a tie
    rounding = 1e3 * float(jnp.finfo(x.dtype).eps) * float(jnp.max(jnp.sum(x**2, axis=1)))
    kept: list[tuple[np.ndarray, float]] = []
    drawn = 0
    for batch in keys:
        for mu, delta in zip(*map(np.asarray, draw(batch)), strict=True):
            if len(kept) < config.restarts:
                drawn += 1
                if delta > rounding:
                    kept.append((mu, delta))
        if len(kept) == config.restarts:
            break
    if not kept:
        raise DataError(f"{config.data}: each of {drawn} random starts meets a tie on Lloyd's path; add jitter")
    mu, delta = jnp.array([mu for mu, _ in kept], x.dtype), jnp.array([delta for _, delta in kept], x.dtype)
    return Starts(mu, delta, 0.999 * limits.one_hot_sigma(jnp.min(delta)), drawn - len(kept))


def sigma_grid(config: Config, diam: float, one_hot: float, last: float) -> np.ndarray:
    """Geometric, from above diam(X) to where γ is one-hot at the k-means solution, and C11's last σ after it."""
    top, bottom, count = config.sigmas or (1.05 * diam, one_hot, 8 if config.quick else 40)
    grid = np.geomspace(top, bottom, count)
    return np.append(grid[grid > last * (1 + 1e-9)], last)


@jax.jit
def fit_restarts(x: jax.Array, starts: jax.Array, sigma: jax.Array):
    """EM from every start at one σ; tol = 0 stops at the floor of rounding."""
    thetas = jax.vmap(lambda mu: limits.parameters(mu, sigma))(starts)
    fits = em_batch(M, thetas, x, tol=0.0, max_steps=MAX_STEPS)
    return fits, best(fits)


def count_distinct(mu: jax.Array, x: jax.Array) -> jax.Array:
    """Centroids further than DISTINCT standard deviations from every earlier one."""
    unit = jnp.sqrt(jnp.mean(jnp.var(x, axis=0)))
    distance = jnp.sqrt(jnp.sum((mu[:, None] - mu[None]) ** 2, axis=-1))
    return jnp.sum(~jnp.any(jnp.tril(distance < DISTINCT * unit, k=-1), axis=1))


@partial(jax.jit, static_argnames="num_steps")
def certify_row(x: jax.Array, fitted: jax.Array, start: jax.Array, sigma: jax.Array, diam: jax.Array, num_steps: int):
    """Everything that is claimed at one σ: at the fit, and at a random start where the statement is for any θ."""
    at_fit, at_start = limits.parameters(fitted, sigma), limits.parameters(start, sigma)
    both = jax.tree.map(lambda a, b: jnp.stack([a, b]), at_fit, at_start)
    certificates = jax.lax.map(lambda theta: certify(M, theta, x), both)
    rate = convergence_rate(M, at_fit, x)
    spectrum, _ = limits.coincident_spectrum(x, at_fit["pi"], sigma)
    soft, hard = responsibilities(M, at_fit, x), responsibilities(M, at_fit, x, temperature=0.0)
    least = jnp.min(limits.gaps(squared_distances(x, fitted)))
    q = limits.scaled_expectation(x, fitted, sigma)
    return {
        "J": distortion(x, fitted),
        "distinct": count_distinct(fitted, x),
        "gamma_gap": jnp.max(jnp.abs(soft - hard)),
        "gamma_gap_bound": (len(fitted) - 1) * jnp.exp(-least / (2 * sigma**2)),
        "certificates": certificates._asdict(),
        "C7": limits.assignment_gap(x, fitted, sigma),
        "objective_gap": limits.objective_gap(x, fitted, sigma),
        "C8": limits.objective_bound(x, fitted, sigma),
        "Q": q.Q,
        "scaled_residual": q.residual,
        "C9": q.check,
        "C10": limits.centre_gap(x, fitted, sigma, diam),
        "spectral_radius": rate.spectral_radius,
        "C12": missing_information_check(x, at_fit, rate),
        "coincident_eigenvalue": spectrum[-1],
        "C13": limits.coincident_bound(x, at_fit["pi"], sigma),
        "C14": limits.temperature_is_variance(x, fitted, sigma, TEMPERATURE),
        "C15": limits.hard_em_is_kmeans(x, start, sigma, num_steps=num_steps),
    }


def missing_information_check(x: jax.Array, theta: dict, rate) -> limits.Bound:
    """C12 at a fit that stopped `step` short of its fixed point.

    Off the fixed point the two sides differ by exactly step_k · ∂(log N_k)/∂μ, because Q is quadratic in μ; that
    is the bound. The information matrices' terms are of size spread²/σ² in the units of their result.
    """

    def means(flat: jax.Array) -> tuple[jax.Array, jax.Array]:
        at = theta | {"mu": flat.reshape(theta["mu"].shape)}
        statistics = M.statistics(at, x, jax.nn.softmax(M.table(at, x), axis=0))
        return jnp.log(statistics.N_k), M.update(statistics, at, M.held)["mu"]

    flat = theta["mu"].ravel()
    step = jnp.max(jnp.abs(means(flat)[1].ravel() - flat))
    slope = jnp.max(jnp.abs(jax.jacfwd(lambda flat: means(flat)[0])(flat)))
    spread = jnp.max(jnp.sum((x - jnp.mean(x, axis=0)[None]) ** 2, axis=1))
    rounding = limits.ROUNDING * jnp.finfo(x.dtype).eps * (1 + spread / theta["sigma"] ** 2)
    return limits.Bound(jnp.max(jnp.abs(rate.jacobian - rate.missing_information)), step * slope + rounding)


def run(config: Config, *, progress: bool = True) -> dict[str, Any]:
    """The sweep: config, rows (a dict per σ), claims, and the arrays behind them."""
    data = load(config.data, config.reading)
    for note in data.notes:
        print(f"sigma_sweep: {note}", file=sys.stderr)
    if config.components > len(data.x):
        raise DataError(f"--components: {config.components} exceeds the {len(data.x)} rows of {data.name}")
    distinct = len(np.unique(data.x, axis=0))
    if config.components > distinct:
        raise DataError(f"--components: {config.components} exceeds the {distinct} distinct rows of {data.name}")
    x = jnp.asarray(data.x, jnp.float64 if config.precision == 64 else jnp.float32)
    diam, critical = limits.diameter(x), limits.critical_sigma(x)
    starts = draw_starts(x, config)
    lloyd = [kmeans(x, mu) for mu in starts.mu]
    distortions = np.array([float(distortion(x, fit.theta["mu"])) for fit in lloyd])
    winner = lloyd[int(distortions.argmin())].theta["mu"]
    one_hot = limits.one_hot_sigma(jnp.min(limits.gaps(squared_distances(x, winner))))
    clock = time.perf_counter()
    rows, centres = [], []
    grid = sigma_grid(config, float(diam), float(one_hot), float(starts.sigma))
    for index, sigma in enumerate(tqdm(grid, desc="sigma", unit="σ", disable=not progress)):
        sigma = jnp.asarray(sigma, x.dtype)
        fits, fit = fit_restarts(x, starts.mu, sigma)
        start = starts.mu[index % len(starts.mu)]
        measured = certify_row(x, fit.theta["mu"], start, sigma, diam, LLOYD_STEPS)
        rows.append(as_row(sigma, fits, fit, jax.tree.map(np.asarray, measured)))
        centres.append(np.asarray(fit.theta["mu"]))
    iterates = jax.lax.map(lambda mu: limits.iterates_gap(x, mu, starts.sigma, num_steps=LLOYD_STEPS), starts.mu)
    wide = jnp.asarray(1.05, x.dtype) * diam
    coincidence = jax.lax.map(lambda mu: limits.coincidence(x, mu, wide), starts.mu)
    monotone = monotone_check(x, starts, critical)
    return {
        "config": config._asdict() | {"sigmas": grid.tolist(), "reading": config.reading._asdict()},
        "rows": rows,
        "claims": claims(rows, x, iterates, coincidence, monotone),
        "summary": {
            "num_rows": x.shape[0],
            "num_features": x.shape[1],
            "columns": data.columns,
            "centre": data.centre,
            "scale": data.scale,
            "standardised": config.reading.standardise,
            "diameter": float(diam),
            "critical_sigma": float(critical),
            "last_sigma": float(starts.sigma),
            "least_gap": float(jnp.min(starts.delta)),
            "starts_redrawn": starts.redrawn,
            "distinct_tolerance": DISTINCT,
            "kmeans_J": float(distortions.min()),
            "kmeans_steps": [int(fit.num_steps) for fit in lloyd],
        },
        "arrays": {
            "x": np.asarray(x),
            "sigma": grid,
            "mu": np.stack(centres),
            "starts": np.asarray(starts.mu),
            "kmeans_mu": np.asarray(winner),
        },
        "seconds": time.perf_counter() - clock,
    }


def monotone_check(x: jax.Array, starts: Starts, sigma: jax.Array) -> limits.Bound:
    """C2 along whole paths, at σ_c / 2 and from every start: the largest fall of F in any half-step."""

    def fall(mu: jax.Array) -> limits.Bound:
        path = em_path(M, limits.parameters(mu, sigma / 2), x, num_steps=LLOYD_STEPS)
        trace = jnp.stack([path.after_e, path.after_m], axis=1).ravel()
        allowance = limits.ROUNDING * jnp.finfo(x.dtype).eps * jnp.max(jnp.abs(trace))
        return limits.Bound(jnp.max(trace[:-1] - trace[1:]), allowance)

    return jax.tree.map(jnp.max, jax.lax.map(fall, starts.mu))


def as_row(sigma: jax.Array, fits: Any, fit: Any, measured: dict[str, Any]) -> dict[str, Any]:
    """One σ as plain numbers."""
    certificates = measured.pop("certificates")
    row: dict[str, Any] = {
        "sigma": float(sigma),
        "free_energy": float(fit.free_energy),
        "status": Status(int(fit.status)).name,
        "unconverged": int(np.sum(np.asarray(fits.status) != Status.CONVERGED)),
        "iterations": int(fit.num_steps),
        "iterations_all": np.asarray(fits.num_steps).tolist(),
    }
    for name, value in measured.items():
        if isinstance(value, limits.Bound):
            row |= {name: float(value.value), f"{name}_bound": float(value.bound)}
        else:
            row[name] = value.item()
    for name, (at_fit, at_start) in certificates.items():
        row |= {name: at_fit.item(), f"{name}_start": at_start.item()}
    return row


def claims(rows: list[dict], x: jax.Array, iterates: Any, coincidence: Any, monotone: Any) -> list[Claim]:
    """The verdicts. A bound that varies with σ is reported at the σ where value / bound is largest."""

    def residual(name: str, statement: str) -> Claim:
        values = [row[key] for row in rows for key in (name, f"{name}_start") if np.isfinite(row[key])]
        eps = float(jnp.finfo(x.dtype).eps)
        return Claim(name, statement, max(values, default=float("nan")), limits.ROUNDING * eps)

    def tested(name: str, statement: str, pairs: Any) -> Claim:
        worst = limits.tightest(jnp.atleast_1d(pairs.value), jnp.atleast_1d(pairs.bound))
        return Claim(name, statement, float(worst.value), float(worst.bound))

    def bounded(name: str, statement: str) -> Claim:
        values, bounds = (jnp.array([row[key] for row in rows]) for key in (name, f"{name}_bound"))
        return tested(name, statement, limits.Bound(values, bounds))

    speaking = sum(row["C4_rows"] + row["C4_rows_start"] for row in rows)
    silent = 2 * len(rows) * x.shape[0] - speaking
    return [
        residual("C1", "F ≤ T Σ log Σ e^{ℓ/T}: equality at the posterior, T Σ KL short of it elsewhere"),
        tested("C2", "neither half-step of EM lowers F", monotone),
        residual("C3", "M-step: ∇F = 0 at μ_k = Σγx/N_k, by jax.grad"),
        residual(
            "C4", f"E-step: ∂F/∂γ equal over each row, by jax.grad ({speaking:,} rows; {silent:,} one-hot, silent)"
        ),
        residual("C5", "Fisher: ∇L = ∇Q at every θ"),
        residual("C6", "Xu–Jordan: μ⁺ − μ = (σ²/N_k) ∇L at every θ"),
        bounded("C7", "E-step: |γ − r| ≤ (K − 1) exp(−Δ/2σ²)"),
        bounded("C8", "J ≤ G_σ ≤ J + 2σ²N log K, as |v − ½ log K| ≤ ½ log K"),
        bounded("C9", "|2σ²(Q − C) + J| ≤ 2σ²N(K − 1)/e, while Q diverges"),
        bounded("C10", "M-step: ‖μ_k(γ) − μ_k(r)‖ ≤ diam(X) Σ|γ − r|/N_k"),
        tested("C11", "iterates: at the last σ EM's centres equal Lloyd's at every step", iterates),
        bounded("C12", "rate: EM's Jacobian = I − I_c⁻¹ I_obs, the missing information"),
        bounded("C13", "at μ_k = x̄ EM's spectrum is {0, λ_i/σ²}: it splits at σ_c = √λ_max"),
        tested("C13b", "at σ > diam(X) EM ends with all centres at x̄", coincidence),
        bounded("C14", f"temperature T at σ² is temperature 1 at Tσ² (T = {TEMPERATURE})"),
        bounded("C15", "hard EM is k-means at any σ"),
    ]


# ---- the command line


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(prog="sigma_sweep", description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="old_faithful", help="old_faithful, iris, blobs, or a .csv or .npy path")
    parser.add_argument("--components", type=int, help="K ≥ 2; default 2 for Old Faithful, 3 otherwise")
    parser.add_argument("--sigmas", nargs=3, metavar=("MAX", "MIN", "COUNT"), help="a geometric grid of σ")
    parser.add_argument("--restarts", type=int, help="random starts at each σ (default 8; with --quick 2)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", type=int, choices=(32, 64), default=64)
    parser.add_argument("--out", default="results", metavar="DIR")
    parser.add_argument("--quick", action="store_true", help="8 values of σ, 2 restarts")
    parser.add_argument("--no-plot", action="store_true", help="no PDF and PNG")
    parser.add_argument("--columns", metavar="A,B,…", help="of a file: names, or numbers from 1")
    parser.add_argument("--sep", default=",", help="of a CSV: what stands between its columns")
    parser.add_argument("--index", action="store_true", help="of a file: its first column is an index, and left out")
    parser.add_argument("--no-standardise", action="store_true", help="take the columns in their own units")
    parser.add_argument("--full", action="store_true", help="all columns of the table")
    options = parser.parse_args(arguments)
    if options.components is None:
        options.components = 2 if options.data == "old_faithful" else 3
    if options.components < 2:
        parser.error(f"--components: must be at least 2, got {options.components}")
    if options.restarts is None:
        options.restarts = 2 if options.quick else 8
    if not 1 <= options.restarts <= MOST_RESTARTS:
        parser.error(f"--restarts: must be at least 1 and at most {MOST_RESTARTS}, got {options.restarts}")
    check_seed(parser, options.seed)
    sep = {"tab": "\t", "\\t": "\t"}.get(options.sep, options.sep)
    if len(sep) != 1 or sep in '"\n\r.' or sep.isalnum():
        parser.error(f"--sep: must be one character that no number has, like ';' or 'tab', got {options.sep!r}")
    wanted = tuple(name.strip() for name in options.columns.split(",")) if options.columns is not None else None
    options.reading = Reading(wanted, sep, options.index, not options.no_standardise)
    if options.sigmas:
        options.sigmas = parse_sigmas(parser, options.sigmas, options.precision)
    return options


def parse_sigmas(parser: OneLineParser, words: list[str], precision: int) -> tuple[float, float, int]:
    try:
        top, bottom, count = float(words[0]), float(words[1]), int(words[2])
    except ValueError:
        parser.error(f"--sigmas: wants two numbers and a whole number, got {' '.join(words)}")
    if not (np.isfinite([top, bottom]).all() and bottom > 0):
        parser.error(f"--sigmas: MAX and MIN must be positive and finite, got {words[0]} {words[1]}")
    if not top > bottom:
        parser.error(f"--sigmas: must decrease from MAX to MIN, got {words[0]} {words[1]}")
    if not 2 <= count <= MOST_SIGMAS:
        parser.error(f"--sigmas: COUNT must be at least 2 and at most {MOST_SIGMAS}, got {count}")
    edge = {32: 1e-15, 64: 1e-100}[precision]  # σ² and what is divided by it stay numbers
    if not (edge <= bottom and top <= 1 / edge):
        parser.error(f"--sigmas: MAX and MIN must be between {edge} and {1 / edge:g}, got {words[0]} {words[1]}")
    return top, bottom, count


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    config = Config(**{name: getattr(options, name) for name in Config._fields})
    jax.config.update("jax_enable_x64", config.precision == 64)
    try:
        folder = writable_folder(options.out)
    except OSError as error:
        print(f"sigma_sweep: --out: cannot write to {options.out}: {error.strerror or error}", file=sys.stderr)
        return 2
    try:
        result = run(config)
        report(result, full=options.full)
        save(result, folder, plot=not options.no_plot)
    except DataError as error:
        print(f"sigma_sweep: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nsigma_sweep: interrupted, nothing written", file=sys.stderr)
        return 130
    print(f"wrote {folder}/sigma_sweep.{{json,npz{'' if options.no_plot else ',pdf,png'}}}")
    return 0 if all(claim.holds for claim in result["claims"]) else 1


def report(result: dict[str, Any], *, full: bool = False) -> None:
    print()
    print_rows(result["rows"], full=full)
    print()
    print_claims(result["claims"])
    print(f"\n{in_words(result)}\n")


def save(result: dict[str, Any], folder: Any, *, plot: bool) -> None:
    """All files or none."""
    document = {name: result[name] for name in ("config", "summary", "rows")}
    document["claims"] = [claim.as_json() for claim in result["claims"]]
    document["provenance"] = provenance() | {"seconds": result["seconds"]}
    columns = {name: np.array([row[name] for row in result["rows"]]) for name in result["rows"][0]}
    with written_together(folder) as write:
        write("sigma_sweep.json", lambda path: path.write_text(as_json(document)))
        write("sigma_sweep.npz", lambda path: np.savez(path, **(columns | result["arrays"])))
        if plot:
            import _style
            from _sigma_figure import draw

            figure = draw(document, result["arrays"])
            for ending in ("pdf", "png"):
                write(f"sigma_sweep.{ending}", partial(_style.save, figure))


if __name__ == "__main__":
    use_all_cores()
    leave(main())
