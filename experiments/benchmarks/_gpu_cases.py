"""What `gpu.py` measures: functions of (name of a case, quick?, seed), each of which yields its findings one by one."""

import functools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import large_em
import large_kmeans
import numpy as np

import _peers
import _problems
from _problems import Case
from _timing import interleaved, measure

Finding = dict[str, Any]


@functools.cache
def problem(case: Case, seed: int) -> tuple[np.ndarray, np.ndarray]:
    return _problems.data(case, seed)


def case_of(name: str, quick: bool) -> tuple[str, Case]:
    """The family and the size of "kmeans D2", "em full" or "em full, four times the rows"."""
    kind, rest = name.split(" ", 1)
    family, _, larger = rest.partition(", ")
    if kind == "kmeans":
        family, case = kind, large_kmeans.CASES[rest][0]
    else:
        case = large_em.CASES.get(family, large_em.CASES["spherical"])._replace(num_steps=10)
    case = case._replace(num_rows=4 * case.num_rows) if larger else case
    return family, case.tiny() if quick else case


def whole_fits(name: str, quick: bool, seed: int) -> Iterator[Finding]:
    """Fits of jaxem and its peers from one start; where they led, in float64."""
    family, case = case_of(name, quick)
    x, mu = problem(case, seed)
    em = "gmmx EMFitter" if name.startswith("gmmx") else "jaxem.em"
    for program, make in (_peers.KMEANS_ON_GPU if family == "kmeans" else {em: _peers.EM[em]}).items():
        try:
            n = case.num_steps
            pair = (n // 3 or 1, n) if family == "full" else (n, 4 * n)  # `full` ends soon after
            few, many = (make(family, _problems.start(family, mu), x, steps) for steps in pair)
            timings = interleaved({"few": few.fit, "many": many.fit}, repeats=1 if quick else 7, pause=0.0)
            short, long = timings["few"], timings["many"]
            end, far = few.outcome(short.value), many.outcome(long.value)
            slope = (long.median - short.median) / max(far.iterations - end.iterations, 1)
            yield {
                "program": program,
                "setting": case._asdict(),
                "iterations": [end.iterations, far.iterations],
                "whole": [short.median / end.iterations, long.median / far.iterations],
                "slope": slope,
                "fixed": short.median - slope * end.iterations,
                "compile": short.compile_seconds,
                "objective": [in_float64(family, x, outcome.theta) for outcome in (end, far)],
                "note": end.note,
            }
        except Exception as error:
            yield {"program": program, "failed": f"{type(error).__name__}: {error}"[:300]}


def in_float64(family: str, x: np.ndarray, theta: dict[str, Any]) -> float:
    """`_problems.objective` in seconds less: the same number by JAX, chunk by chunk."""
    import jax
    import jax.numpy as jnp

    import jaxem
    from jaxem.families import gaussian

    with jax.enable_x64(True):
        rows, theta = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, float)), (x, dict(theta)))
        if family == "kmeans":
            return float(jaxem.distortion(rows, theta["mu"]))
        theta["pi"] = theta["pi"] / jnp.sum(theta["pi"])
        if "Sigma" in theta:  # gmmx's are symmetric to float32 only
            theta["Sigma"] = (theta["Sigma"] + jnp.swapaxes(theta["Sigma"], -1, -2)) / 2
        return float(jaxem.log_likelihood(getattr(gaussian, family), theta, rows))


def exact(name: str, quick: bool, seed: int) -> Iterator[Finding]:
    """Fits by the kernel and by chunks in float32, against float64: F, θ, and how many rows have another label."""
    import jax
    import jax.numpy as jnp

    import jaxem
    from jaxem._rows import gpu
    from jaxem.families import gaussian

    x, mu = problem(Case(2_000, 3, 4, 2) if quick else Case(262_144, 32, 64, 10), seed)
    kernel, x64 = gpu.where_it_runs, jnp.asarray(x, float)
    for family in ("kmeans", "isotropic", "spherical", "diagonal"):
        m = getattr(gaussian, family.replace("kmeans", "isotropic"))
        reference: tuple[Any, ...] = ()
        for way in ("float64", "kernel", "chunks"):
            gpu.where_it_runs = kernel if way == "kernel" else lambda fused, otherwise: otherwise()
            jax.clear_caches()
            dtype = float if way == "float64" else np.float32
            rows, start = jax.tree.map(lambda a, dtype=dtype: jnp.asarray(a, dtype), (x, _problems.start(family, mu)))
            if family == "kmeans":
                fit = jaxem.kmeans(rows, start["mu"], max_steps=10)
            else:
                fit = jaxem.em(m, start, rows, tol=0.0, max_steps=10)
            theta = {name: np.asarray(leaf, float) for name, leaf in fit.theta.items()}
            theta["pi"] = theta["pi"] / theta["pi"].sum()
            labels = np.asarray(jnp.argmax(jaxem.responsibilities(m, theta, x64), axis=1))
            found = (float(fit.free_energy), theta["mu"], labels)
            reference = reference or found
            yield {
                "family": family,
                "way": way,
                "F": found[0],
                "relative error of F": abs(found[0] / reference[0] - 1),
                "farthest mean": float(np.abs(found[1] - reference[1]).max()),
                "rows of another label": int(np.sum(labels != reference[2])),
            }


def machine(name: str, quick: bool, seed: int) -> Iterator[Finding]:
    """What it reads and multiplies a second, by JAX's own operations."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    device = jax.devices()[0]
    yield {"device": device.device_kind, "jax": jax.__version__}
    x = jnp.ones(2**20 if quick else 2**30)
    for what, f, passes in (("read", jnp.sum, 1), ("read and written", lambda x: x + 1, 2)):
        yield {"what": what, "TB/s": 1e-12 * passes * 4 * x.size / measure(jax.jit(f), x).median}
    del x
    side = 256 if quick else 8_192
    a, b = jax.random.normal(jax.random.key(seed), (2, side, side))
    presets = {"float32": "F32_F32_F32", "TF32": "TF32_TF32_F32", "TF32 three times": "TF32_TF32_F32_X3"}
    for what, preset in presets.items():
        preset = preset if jax.default_backend() == "gpu" else "F32_F32_F32"
        product = jax.jit(partial(jnp.matmul, precision=lax.DotAlgorithmPreset[preset]))
        yield {"what": f"product, {what}", "TFLOP/s": 1e-12 * 2 * side**3 / measure(product, a, b).median}


def kernel(name: str, quick: bool, seed: int) -> Iterator[Finding]:
    """The kernel alone, twenty times in a program: hard, soft, and with squares."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    from jaxem._rows import gpu

    interpret = jax.default_backend() != "gpu"
    N = 500 if quick else 1_048_576
    for D, K in [(3, 4)] if quick else [(32, 64), (16, 16), (2, 16), (32, 32), (128, 16), (4, 200)]:
        x, slope = jax.random.normal(jax.random.key(seed), (N, D)), jax.random.normal(jax.random.key(1), (K, D))
        for squares, hard in ((False, True), (False, False), (True, False)):
            a = -jnp.ones((K, D)) if squares else None
            ell = gpu.Quadratic(jnp.zeros(D), a, slope, jnp.zeros(K), jnp.zeros(2))
            if not gpu.fits(ell):
                continue

            @jax.jit
            def repeated(ell: Any, x: Any, hard: bool = hard) -> Any:
                def body(total: Any, _: None) -> tuple[Any, None]:
                    here = ell._replace(intercept=ell.intercept + 0 * total)
                    return gpu.sums(here, x, None, jnp.float32(not hard), hard, interpret).free_energy, None

                return lax.scan(body, jnp.float32(0), length=20)[0]

            timing = measure(repeated, ell, x)
            yield {"N": N, "D": D, "K": K, "squares": squares, "hard": hard, "seconds": timing.median / 20}


def lanes(name: str, quick: bool, seed: int) -> Iterator[Finding]:
    """Small spherical fits, N = 1,000, D = 2, K = 3: 10⁴ over how many run at a time, then 10⁵."""
    import jax
    import jax.numpy as jnp
    import small_fits

    import jaxem
    from jaxem._fit import lanes as _lanes
    from jaxem.families import gaussian

    x = small_fits.data(jax.random.key(seed), 1_000)
    many = 20 if quick else 10_000
    mu = x[jax.random.randint(jax.random.key(seed + 1), (10 * many, 3), 0, len(x))]
    sigma = jnp.repeat(jnp.geomspace(3.0, 0.3, 10 * many)[:, None], 3, axis=1)
    thetas = {"pi": jnp.full((10 * many, 3), 1 / 3), "mu": mu, "sigma": sigma}
    some, now = jax.tree.map(lambda leaf: leaf[::10], thetas), _lanes.MANY
    rows_at_a_time = _lanes.ROWS
    for slots, starts in ((now // 2, some), (now, some), (2 * now, some), (now, thetas)):
        _lanes.MANY, _lanes.ROWS = slots, slots * len(x)
        options = {"tol": 1e-8, "max_steps": 2_000}
        timing = measure(partial(jaxem.em_batch, gaussian.spherical, starts, x, **options), repeats=1 if quick else 2)
        fits = timing.value
        yield {
            "slots": slots,
            "fits": len(fits.status),
            "seconds": timing.median,
            "fits a second": len(fits.status) / timing.median,
            "compile": timing.compile_seconds,
            "iterations": [float(jnp.mean(fits.num_steps)), int(jnp.max(fits.num_steps))],
            "status": {status.name: int(jnp.sum(fits.status == status)) for status in jaxem.Status},
            "F": float(jnp.nanmean(fits.free_energy)),
        }
    _lanes.MANY, _lanes.ROWS = now, rows_at_a_time


def program(name: str, quick: bool, seed: int) -> Iterator[Finding]:
    """A mixture written in NumPyro beside its family."""
    import programs

    for found in programs.mixtures(quick, seed, num_rows=2_000 if quick else 1_000_000):
        for row in found["rows"]:
            yield {"what": found["name"], "setting": found["setting"]} | row


OTHERS: dict[str, Callable[[str, bool, int], Iterator[Finding]]] = {
    "exact": exact, "machine": machine, "kernel": kernel, "lanes": lanes, "program": program,
}  # fmt: skip


def findings(name: str, quick: bool, seed: int) -> Iterator[Finding]:
    return OTHERS.get(name, whole_fits)(name, quick, seed)
