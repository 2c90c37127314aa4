"""Do 95 % intervals hold the truth 95 times in 100? Standard errors of 10,000 fits, by information and by sandwich.

    python experiments/coverage.py [--seed S] [--out DIR] [--quick] [--no-plot]

Each data set is 800 rows of a mixture of two spherical Gaussians in the plane, 2.5 standard deviations apart. EM fits
it, and θ̂ ± 1.96 standard errors is an interval for each parameter, which should hold it with probability 95 %, up to
terms that vanish with N:

    right model   rows are what the model says: I⁻¹ and I⁻¹ (Σ s sᵀ) I⁻¹ estimate the same covariance
    wrong model   rows have Laplace's tails, of the same variance: θ̂ tends to the θ* that is nearest in the sense of
                  Kullback and Leibler, and only the sandwich estimates how it varies (Huber 1967; White 1982)

θ* is the fit to a million rows, whose own error is a fiftieth of an interval's. All data sets are lanes of one program.

Writes DIR/coverage.json, .npz, .pdf and .png. Exits 0 when every claim holds, 1 when one fails, 2 for bad arguments.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxem
from jaxem.families import gaussian

from _command import Config, Result, command, leave
from _results import Claim

M = gaussian.isotropic
TRUTH = {"pi": np.array([0.4, 0.6]), "mu": np.array([[0.0, 0.0], [1.5, 2.0]]), "sigma": np.array(1.0)}
NUM_ROWS = 800
NUM_SETS = 10_000
LEVEL, Z = 0.95, 1.959964  # two-sided, of a normal
OFF = 0.02  # coverage of 93 to 97 %
PARAMETERS = ("π₀", "μ₀₀", "μ₀₁", "μ₁₀", "μ₁₁", "σ")
KINDS = ("observed", "sandwich")
MODELS = {"right": False, "wrong": True}  # is it wrong?


def rows(key: jax.Array, num_rows: int, wrong: jax.Array | bool) -> jax.Array:
    """Rows about the two means, with normal or with Laplace's tails of the same variance."""
    for_z, for_x = jax.random.split(key)
    z = jax.random.bernoulli(for_z, TRUTH["pi"][1], (num_rows,)).astype(int)
    shape = (num_rows, 2)
    noise = jnp.where(wrong, jax.random.laplace(for_x, shape) / np.sqrt(2), jax.random.normal(for_x, shape))
    return jnp.asarray(TRUTH["mu"])[z] + TRUTH["sigma"] * noise


def numbers(theta: dict[str, Any]) -> jax.Array:
    """The free numbers of θ, in the order of PARAMETERS."""
    return jnp.concatenate([theta["pi"][:1], jnp.ravel(theta["mu"]), jnp.reshape(theta["sigma"], 1)])


@jax.jit
def simulate(keys: jax.Array, wrong: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(θ̂, standard errors of each kind, status) of a data set for each key."""

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        x = rows(key, NUM_ROWS, wrong)
        fit = jaxem.em(M, TRUTH, x)
        errors = [jaxem.standard_errors(M, fit.theta, x, kind=kind).standard_errors for kind in KINDS]
        return numbers(fit.theta), jnp.stack([numbers(error) for error in errors]), fit.status

    return lax.map(
        one, keys
    )  # one after another, as em_batch does on a CPU; side by side, jaxlib 0.10 may wait for ever


def run(config: Config) -> Result:
    size = NUM_SETS // 25 if config.quick else NUM_SETS
    key = jax.random.key(config.seed)
    arrays: dict[str, np.ndarray] = {}
    coverage: dict[str, dict[str, np.ndarray]] = {}
    failed = 0
    for index, (model, wrong) in enumerate(MODELS.items()):
        of_sets, of_many = jax.random.split(jax.random.fold_in(key, index))
        target = TRUTH
        if wrong:
            many = rows(of_many, 20_000 if config.quick else 1_000_000, wrong)
            target = jaxem.check(jaxem.em(M, TRUTH, many)).theta
        found, errors, status = map(np.asarray, simulate(jax.random.split(of_sets, size), wrong))
        nearest = np.asarray(numbers(target))
        held = np.abs(found[:, None] - nearest) <= Z * errors  # NaN holds nothing
        failed += int((status != jaxem.Status.CONVERGED).sum() + np.isnan(errors).any(axis=(1, 2)).sum())
        coverage[model] = {kind: held[:, k].mean(axis=0) for k, kind in enumerate(KINDS)}
        arrays |= {f"{model}_theta": found, f"{model}_errors": errors, f"{model}_target": nearest}
    summary = {
        "num_sets": size,
        "num_rows": NUM_ROWS,
        "parameters": list(PARAMETERS),
        "coverage": {model: {kind: c.tolist() for kind, c in found.items()} for model, found in coverage.items()},
        "spread": {model: arrays[f"{model}_theta"].std(axis=0).tolist() for model in MODELS},
        "mean_error": {model: np.nanmean(arrays[f"{model}_errors"], axis=0).tolist() for model in MODELS},
        "failed": failed,
    }
    return Result(summary, claims(coverage, size, failed, config.quick), arrays)


def claims(coverage: dict[str, dict[str, np.ndarray]], size: int, failed: int, quick: bool) -> list[Claim]:
    """Of few data sets a coverage is known to a few per cent only, which the bound then allows for."""
    slack = 4 * np.sqrt(LEVEL * (1 - LEVEL) / size) if quick else 0.0
    bound = OFF + slack
    (right, right_too), (_, wrong) = (
        [float(np.abs(found[kind] - LEVEL).max()) for kind in KINDS] for found in (coverage["right"], coverage["wrong"])
    )
    sigma = float(coverage["wrong"]["observed"][PARAMETERS.index("σ")])
    return [
        Claim("I", "right model: intervals by the information hold the truth in 93–97 %", right, bound),
        Claim("IBI", "right model: by the sandwich too", right_too, bound),
        Claim("tails", "wrong model: by the sandwich they hold θ*", wrong, bound),
        Claim("why", "wrong model: by the information σ's hold it in less than 90 %", sigma, 0.90 + slack),
        Claim("all", "data sets without a fit or an error, share", failed / size, 0.001),
    ]


def report(summary: dict[str, Any]) -> None:
    print(f"\n{summary['num_sets']} data sets of {summary['num_rows']} rows; 95 % intervals that hold it, in %")
    print(f"  {'':<17}" + "".join(f"{name:>8}" for name in summary["parameters"]))
    for model, kinds in summary["coverage"].items():
        for kind, found in kinds.items():
            print(f"  {model:<8}{kind:<9}" + "".join(f"{100 * value:8.2f}" for value in found))
    print()


def main(arguments: list[str] | None = None) -> int:
    return command("coverage", __doc__, run, report, arguments)


if __name__ == "__main__":
    leave(main())
