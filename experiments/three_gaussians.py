"""500 points from a mixture of three Gaussians: with their labels, without them, and what Bayes' rule makes of it.

    python experiments/three_gaussians.py [--seed S] [--out DIR] [--quick] [--no-plot]

The slides' example. The joint p(x, z) = p(z) p(x | z) gives every point its component, the marginal hides it, and the
responsibilities bring back what can be known of it,

    γ_nk = p(z_n = k | x_n) = π_k N(x_n | μ_k, Σ_k) / Σ_j π_j N(x_n | μ_j, Σ_j).

Certified here: the draws are from that mixture; γ is Bayes' rule, by SciPy's densities; γ is calibrated, as
E[z_nk | x_n] = γ_nk makes Σ_n (z_nk − γ_nk) a sum of N variables of mean 0 and variance γ(1 − γ); and EM from the true
parameters rises above them: the maximum of the likelihood is at least as high as the truth.

Writes DIR/three_gaussians.json, .npz, .pdf and .png. Exits 0 when every claim holds, 1 when one fails, 2 for bad
arguments.
"""

from typing import Any

import jax
import numpy as np
import scipy.special
import scipy.stats

import jaxem
from jaxem.families import gaussian
from jaxem.limits import ROUNDING

from _command import Config, Result, command, leave
from _results import Claim

M = gaussian.full
NUM_POINTS = 500
TRUTH = {
    "pi": np.array([0.5, 0.3, 0.2]),
    "mu": np.array([[0.28, 0.38], [0.50, 0.62], [0.72, 0.40]]),
    "Sigma": np.array(
        [
            [[0.0120, -0.0066], [-0.0066, 0.0090]],
            [[0.0150, 0.0078], [0.0078, 0.0080]],
            [[0.0060, -0.0028], [-0.0028, 0.0120]],
        ]
    ),
}
UNLIKELY = 1e-6  # a statement about random draws is refuted where its p-value is below this


def run(config: Config) -> Result:
    """Draw, forget the labels, and infer them."""
    x, z = jaxem.sample(M, TRUTH, jax.random.key(config.seed), NUM_POINTS // 5 if config.quick else NUM_POINTS)
    gamma = jaxem.responsibilities(M, TRUTH, x)
    fit = jaxem.em(M, TRUTH, x, tol=0.0)
    start = jaxem.log_likelihood(M, TRUTH, x)
    arrays = {"x": x, "z": z, "gamma": gamma, "fit_gamma": jaxem.responsibilities(M, fit.theta, x)}
    arrays = jax.tree.map(np.asarray, arrays) | {f"truth_{name}": value for name, value in TRUTH.items()}
    arrays |= {f"fit_{name}": np.asarray(value) for name, value in fit.theta.items()}
    return Result(
        summary={
            "num_points": len(arrays["x"]),
            "counts": np.bincount(arrays["z"], minlength=3).tolist(),
            "ambiguous": int((arrays["gamma"].max(axis=1) < 0.9).sum()),
            "log_likelihood_of_truth": float(start),
            "log_likelihood_of_fit": float(fit.free_energy),
            "em_steps": int(fit.num_steps),
            "status": jaxem.Status(int(fit.status)).name,
        },
        claims=claims(arrays, float(start), fit),
        arrays=arrays,
    )


def scipy_log_joint(x: np.ndarray) -> np.ndarray:
    """ℓ (N, K) by SciPy's densities."""
    components = zip(TRUTH["pi"], TRUTH["mu"], TRUTH["Sigma"], strict=True)
    columns = [np.log(pi) + scipy.stats.multivariate_normal.logpdf(x, mu, Sigma) for pi, mu, Sigma in components]
    return np.stack(columns, axis=1)


def claims(arrays: dict[str, np.ndarray], start: float, fit: jaxem.Fit) -> list[Claim]:
    """The verdicts. Rounding: an error of eps·|ℓ| in ℓ is a relative error in γ."""
    x, z, gamma = arrays["x"], arrays["z"], arrays["gamma"]
    num_points, num_components = gamma.shape
    eps = ROUNDING * np.finfo(x.dtype).eps
    log_joint = scipy_log_joint(x)
    bayes = scipy.special.softmax(log_joint, axis=1)
    rounding = eps * (1 + np.abs(log_joint).max())
    known = np.eye(num_components)[z]
    excess = np.abs((known - gamma).sum(axis=0)) / np.sqrt((gamma * (1 - gamma)).sum(axis=0))
    quantile = scipy.stats.norm.isf(UNLIKELY / 2 / num_components)
    return [
        Claim("joint", f"(x, z) are draws from the mixture: −log₁₀ p ({num_points} points)", surprise(x, z), 6.0),
        Claim("rows", "each point's responsibilities sum to 1", float(np.abs(gamma.sum(axis=1) - 1).max()), eps),
        Claim("Bayes", "γ is Bayes' rule, by SciPy's densities", float(np.abs(gamma - bayes).max()), rounding),
        Claim("fair", "γ is calibrated: |Σ(z − γ)| in standard deviations", float(excess.max()), float(quantile)),
        Claim("EM", "L(truth) − L(EM from the truth), nats", start - float(fit.free_energy), eps * abs(start)),
        Claim("end", "EM converged (status code)", float(fit.status), float(jaxem.Status.CONVERGED)),
    ]


def surprise(x: np.ndarray, z: np.ndarray) -> float:
    """−log₁₀ of the least p-value of two tests, doubled: the counts of z against Nπ, and Mahalanobis' distances.

    Given z the squared distances ‖x_n − μ_z‖²_Σ sum to a χ² of ND degrees of freedom; both tails count.
    """
    expected = len(z) * TRUTH["pi"]
    counts = scipy.stats.chisquare(np.bincount(z, minlength=len(expected)), expected).pvalue
    difference = x - TRUTH["mu"][z]
    squared = np.einsum("nd,nde,ne->", difference, np.linalg.inv(TRUTH["Sigma"])[z], difference)
    chi2 = scipy.stats.chi2(x.size)
    spread = 2 * min(chi2.cdf(squared), chi2.sf(squared))
    return float(-np.log10(min(1.0, 2 * counts, 2 * spread)))


def report(summary: dict[str, Any]) -> None:
    counts = " + ".join(map(str, summary["counts"]))
    print(f"\n{counts} = {summary['num_points']} points, {summary['ambiguous']} with no γ above 0.9")
    print(f"L(truth) = {summary['log_likelihood_of_truth']:.4f}, L(EM from it) = ", end="")
    print(f"{summary['log_likelihood_of_fit']:.4f}: {summary['status']} in {summary['em_steps']} steps\n")


def main(arguments: list[str] | None = None) -> int:
    return command("three_gaussians", __doc__, run, report, arguments)


if __name__ == "__main__":
    leave(main())
