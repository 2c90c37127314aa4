"""The main job: sweep σ and certify that EM for σ²I Gaussians becomes k-means, claim by claim.

    python experiments/sigma_sweep.py [--data old_faithful|iris|blobs|PATH.csv|PATH.npy] [--components K]
           [--sigmas MAX MIN COUNT] [--restarts R] [--seed S] [--precision 32|64] [--out DIR] [--quick] [--no-plot]
           [--columns A,B,…] [--sep CHARACTER] [--index] [--no-standardise] [--full]

The data are standardised, unless told otherwise. At every σ, equal weights and σ held, EM runs from the same random
starts; the best fit is certified (C1–C15 of `jaxem.certify`, `jaxem.convergence_rate` and `jaxem.limits`), and so are
EM's fixed point near k-means' centres (C17), those centres themselves (C18), EM's distance from every other mixture
(C19), its split (C20) and its rate (C21). The last σ is taken from the least gap along Lloyd's path, where EM must
equal k-means iterate by iterate.

Writes DIR/sigma_sweep.json, .npz, .pdf and .png, and the figure of C17–C21 as DIR/sigma_shadow.pdf and .png. Exits 0
when every claim holds, 1 when one fails, 2 for bad arguments or data.
"""

import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import _sigma_limits
import jax
import jax.numpy as jnp
import numpy as np
from _sigma_claims import claims
from _sigma_options import parse
from _sigma_steps import DISTINCT, LLOYD_STEPS, TEMPERATURE, M, Place, along_paths, as_row, certifiers, fit_restarts
from _sigma_story import in_words, print_rows
from tqdm import tqdm

from jaxem import distortion, inits, kmeans, limits, use_all_cores
from jaxem.families.gaussian import squared_distances

from _command import leave
from _data import DataError, Reading, load
from _results import as_json, print_claims, provenance, writable_folder, written_together


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


def beside(f: Any, *args: Any, **options: Any) -> Future:
    """A call on another core: compiling takes longest of all, and does not wait for what f will be asked."""
    pool = ThreadPoolExecutor(1)
    done = pool.submit(f, *args, **options)
    pool.shutdown(wait=False)
    return done


def sigma_grid(config: Config, diam: float, one_hot: float, last: float) -> np.ndarray:
    """Geometric, from above diam(X) to where γ is one-hot at the k-means solution, and C11's last σ after it."""
    top, bottom, count = config.sigmas or (1.05 * diam, one_hot, 8 if config.quick else 40)
    grid = np.geomspace(top, bottom, count)
    return np.append(grid[grid > last * (1 + 1e-9)], last)


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
    certify = certifiers(x)
    anywhere = Place(*[x[: config.components]] * 3, critical, diam)
    compiled = [beside(part, x, anywhere) for part in certify]
    starts = draw_starts(x, config)
    lloyd = [kmeans(x, mu) for mu in starts.mu]
    distortions = np.array([float(distortion(x, fit.theta["mu"])) for fit in lloyd])
    winner = lloyd[int(distortions.argmin())].theta["mu"]
    one_hot = limits.one_hot_sigma(jnp.min(limits.gaps(squared_distances(x, winner))))
    clock = time.perf_counter()
    rows, centres = [], []
    grid = sigma_grid(config, float(diam), float(one_hot), float(starts.sigma))
    paths = beside(along_paths, x, starts.mu, starts.sigma, critical, diam)
    proved = beside(_sigma_limits.of_data, x, grid, winner, starts.mu, quick=config.quick)
    for part in compiled:
        part.result()
    for index, sigma in enumerate(tqdm(grid, desc="sigma", unit="σ", disable=not progress)):
        sigma = jnp.asarray(sigma, x.dtype)
        fits, fit = fit_restarts(x, starts.mu, sigma)
        place = Place(fit.theta["mu"], starts.mu[index % len(starts.mu)], winner, sigma, diam)
        measured = [jax.tree.map(np.asarray, part(x, place)) for part in certify]
        rows.append(as_row(sigma, fits, fit, {name: value for part in measured for name, value in part.items()}))
        centres.append(np.asarray(fit.theta["mu"]))
    found = {"mixtures": _sigma_limits.of_all_mixtures(x, rows, centres, float(critical), quick=config.quick)}
    found |= proved.result()
    of_steps = claims(rows, float(jnp.finfo(x.dtype).eps), len(x), TEMPERATURE, *paths.result())
    return {
        "config": config._asdict() | {"sigmas": grid.tolist(), "reading": config.reading._asdict()},
        "rows": rows,
        "claims": of_steps + _sigma_limits.claims(rows, found),
        "laws": _sigma_limits.laws(found),
        "mixtures": found["mixtures"],
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
            "kmeans_gap": found["kmeans"]["relative"] if found["kmeans"] else None,
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


# ---- the command line


def main(arguments: list[str] | None = None) -> int:
    options = parse(__doc__, arguments)
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
    figures = "" if options.no_plot else f", {folder}/sigma_sweep.{{pdf,png}} and {folder}/sigma_shadow.{{pdf,png}}"
    print(f"wrote {folder}/sigma_sweep.{{json,npz}}{figures}")
    return 0 if all(claim.holds for claim in result["claims"]) else 1


def report(result: dict[str, Any], *, full: bool = False) -> None:
    print()
    print_rows(result["rows"], full=full)
    print()
    print_claims(result["claims"])
    _sigma_limits.print_laws(result["laws"])
    print(f"\n{in_words(result)}\n")


def save(result: dict[str, Any], folder: Any, *, plot: bool) -> None:
    """All files or none."""
    document = {name: result[name] for name in ("config", "summary", "rows", "mixtures", "laws")}
    document["claims"] = [claim.as_json() for claim in result["claims"]]
    document["provenance"] = provenance() | {"seconds": result["seconds"]}
    columns = {name: np.array([row[name] for row in result["rows"]]) for name in result["rows"][0]}
    with written_together(folder) as write:
        write("sigma_sweep.json", lambda path: path.write_text(as_json(document)))
        write("sigma_sweep.npz", lambda path: np.savez(path, **(columns | result["arrays"])))
        if plot:
            import _sigma_shadow

            import _sigma_figure
            import _style

            for name, module in (("sigma_sweep", _sigma_figure), ("sigma_shadow", _sigma_shadow)):
                figure = module.draw(document, result["arrays"])
                for ending in ("pdf", "png"):
                    write(f"{name}.{ending}", partial(_style.save, figure))


if __name__ == "__main__":
    use_all_cores()
    leave(main())
