"""EM in long double, written out in NumPy: of each family ℓ and how large its terms are, the E-step and the M-step.

Nothing here is jaxem's. Log Γ is Stirling's series, Bessel's I its power series or Hankel's, and what has no formula (a
concentration, degrees of freedom) is where Q is highest among many, and between its neighbours.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import bernoulli

LONG = np.longdouble
PI = LONG("3.14159265358979323846264338327950288")
SCALES, COVARIANCES = ("isotropic", "spherical", "diagonal"), ("tied", "full")
ANALYSERS = "factor_analysers"  # of one factor
GAUSSIAN = (*SCALES, *COVARIANCES)
WITH_MATRICES = (*GAUSSIAN, ANALYSERS, "student_t")
Theta = dict[str, np.ndarray]


# ---- special functions


def stirling(a: np.ndarray) -> np.ndarray:
    """log Γ(a) − (a − ½) log a + a − ½ log 2π."""
    small = a < 16
    b = np.where(small, a + 16, a)
    series = sum(LONG(B) / (2 * k * (2 * k - 1)) / b ** (2 * k - 1) for k, B in enumerate(bernoulli(20)[2::2], 1))
    raised = np.where(small, a, 16)
    steps = sum(np.log(raised + i) for i in range(16))
    back = (b - LONG(0.5)) * np.log(b) - steps - (raised - LONG(0.5)) * np.log(raised) - 16
    return np.where(small, series + back, series)


def log_gamma(a: np.ndarray) -> np.ndarray:
    return stirling(a) + (a - LONG(0.5)) * np.log(a) - a + np.log(2 * PI) / 2


def sphere_height(kappa: np.ndarray, D: int) -> np.ndarray:
    """log of the density of vMF(μ, κ) at μ: ν log κ − (D/2) log 2π − log I_ν(κ) + κ, ν = D/2 − 1."""
    nu, large = LONG(D) / 2 - 1, kappa > 40
    k = np.arange(160, dtype=LONG).reshape(-1, *(1,) * np.ndim(kappa))
    small = np.maximum(np.where(large, 1, kappa), LONG(1e-4000))
    logs = 2 * k * np.log(small / 2) - powers(D).reshape(k.shape)
    peak = logs.max(0)
    by_powers = small - peak - np.log(np.exp(logs - peak).sum(0))
    big, term, total = np.where(large, kappa, 41), LONG(1), LONG(1)
    for j in range(1, 30):
        term = -term * (4 * nu**2 - (2 * j - 1) ** 2) / (8 * j * big)
        total = total + term
    by_hankel = (nu + LONG(0.5)) * np.log(big) + np.log(2 * PI) / 2 - np.log(total)
    return np.where(large, by_hankel, by_powers) - D * np.log(2 * PI) / 2


@functools.cache
def powers(D: int) -> np.ndarray:
    """log 2^ν k! Γ(k + ν + 1), ν = D/2 − 1, of every k."""
    k, nu = np.arange(160, dtype=LONG), LONG(D) / 2 - 1
    return nu * np.log(LONG(2)) + log_gamma(k + 1) + log_gamma(k + nu + 1)


def gamma_height(alpha: np.ndarray) -> np.ndarray:
    """α log α − α − log Γ(α)."""
    return np.log(alpha / (2 * PI)) / 2 - stirling(alpha)


def defect(u: np.ndarray) -> np.ndarray:
    """u − log(1 + u)."""
    return u - np.log1p(u)


# ---- ℓ


def factors(theta: Theta) -> tuple[np.ndarray, np.ndarray]:
    """σ (K, D) and L⁻¹ of the correlation matrices (K, D, D); NaN where those are not positive definite."""
    K, D = theta["mu"].shape
    if "sigma" in theta and "loadings" not in theta:
        sigma = theta["sigma"].reshape(theta["sigma"].shape + (1,) * (2 - theta["sigma"].ndim))
        return np.broadcast_to(sigma, (K, D)), np.broadcast_to(np.eye(D, dtype=LONG), (K, D, D))
    Sigma = np.broadcast_to(covariance(theta), (K, D, D))
    sigma = np.sqrt(np.diagonal(Sigma, axis1=1, axis2=2))
    C = Sigma / sigma[:, :, None] / sigma[:, None]
    L, inverse = np.zeros_like(C), np.zeros_like(C)
    for i in range(D):
        for j in range(i + 1):
            rest = C[:, i, j] - (L[:, i, :j] * L[:, j, :j]).sum(1)
            L[:, i, j] = np.sqrt(rest) if i == j else rest / L[:, j, j]
        inverse[:, i, i] = 1 / L[:, i, i]
        for j in range(i):
            inverse[:, i, j] = -(L[:, i, j:i] * inverse[:, j:i, j]).sum(1) / L[:, i, i]
    return sigma, inverse


def covariance(theta: Theta) -> np.ndarray:
    if "loadings" not in theta:
        return theta["Sigma"]
    outer = np.einsum("kdq,keq->kde", theta["loadings"], theta["loadings"])
    return outer + theta["sigma"][:, :, None] ** 2 * np.eye(outer.shape[1], dtype=LONG)


def table(family: str, theta: Theta, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ℓ (N, K), and the sum of the sizes of its terms, times what their arithmetic amplifies."""
    log_pi = np.log(theta["pi"])[None]
    terms, amplified = terms_of(family, theta, x)
    sizes = sum(np.abs(term) for term in terms)
    return log_pi + sum(terms), (np.abs(log_pi) + sizes) * amplified


def terms_of(family: str, theta: Theta, x: np.ndarray) -> tuple[list[np.ndarray], Any]:
    """The terms of log p(x | z = k), each (N, K) or (1, K), and by how much their arithmetic amplifies rounding."""
    X, D = x[:, None], x.shape[1]
    if family in WITH_MATRICES:
        sigma, inverse = factors(theta)
        white = np.einsum("kde,nke->nkd", inverse, (X - theta["mu"][None]) / sigma[None])
        logs = np.log(sigma) - np.log(np.diagonal(inverse, axis1=1, axis2=2))
        amplified = D * (inverse**2).sum((1, 2))[None] / D ** (family in SCALES)
        if family == "student_t":
            return [*student_terms(theta["df"], (white**2).sum(2), D), *(-logs.T[:, None])], amplified
        return [*np.moveaxis(-(white**2) / 2, 2, 0), *(-(logs + np.log(2 * PI) / 2).T[:, None])], amplified
    if family == "von_mises_fisher":
        kappa = theta["kappa"][None]
        return [sphere_height(kappa, D), -kappa * ((X - theta["mu"][None]) ** 2).sum(2) / 2], 1
    of_columns = {
        "bernoulli": lambda: [power(X, theta["probs"]), power(1 - X, 1 - theta["probs"])],
        "categorical": lambda: [power((X[..., None] == np.arange(3)).astype(LONG), theta["probs"][None]).sum(3)],
        "poisson": lambda: [power(X, theta["rate"]), -theta["rate"] + 0 * X, -log_gamma(X + 1)],
        "exponential": lambda: [np.log(theta["rate"]) + 0 * X, -theta["rate"] * X],
        "gamma": lambda: gamma_terms(X, theta["concentration"], theta["rate"]),
        "negative_binomial": lambda: negative_binomial_terms(X, theta["mean"], theta["concentration"]),
    }[family]()
    if family == "gamma":  # θ holds α and β to eps each, and x/m − 1 is told from them
        slack = theta["concentration"] * np.abs(X * theta["rate"] / theta["concentration"] - 1)
        of_columns += [slack, -slack]
    return [column for term in of_columns for column in np.moveaxis(term, 2, 0)], 1


def power(n: np.ndarray, p: np.ndarray) -> np.ndarray:
    """log pⁿ, 0⁰ being 1."""
    return np.where(n == 0, 0, n * np.log(np.where(n == 0, 1, p)))


def gamma_terms(x: np.ndarray, alpha: np.ndarray, beta: np.ndarray) -> list[np.ndarray]:
    """−α D(x, m), −log x and c(α)."""
    m = alpha / beta
    return [-alpha * defect((x - m) / m), -np.log(x) + 0 * m, gamma_height(alpha) + 0 * x]


def negative_binomial_terms(x: np.ndarray, m: np.ndarray, r: np.ndarray) -> list[np.ndarray]:
    """log Γ(x + r)/Γ(r) x! + r log r/(r + m) + x log m/(r + m)."""
    widths = power(x, m) + x * np.log1p((x - m) / (r + m)) - log_gamma(x + 1)
    return [widths, (r - LONG(0.5)) * np.log1p(x / r) - r * np.log1p(m / r) - x, stirling(x + r) - stirling(r)]


def student_terms(df: np.ndarray, delta: np.ndarray, D: int) -> list[np.ndarray]:
    """log Γ((ν + D)/2)/Γ(ν/2) − (D/2) log πν and −½(ν + D) log(1 + δ/ν), (N, K), less log det."""
    a, h = df[None] / 2, LONG(D) / 2
    height = (a + h - LONG(0.5)) * np.log1p(h / a) - h + stirling(a + h) - stirling(a) - h * np.log(2 * PI)
    return [height, -(a + h) * np.log1p(delta / df[None])]


# ---- the two steps


def e_step(family: str, theta: Theta, p: dict[str, Any]) -> tuple[np.ndarray, LONG, LONG]:
    """wγ, F, and how large its terms are."""
    ell, sizes = table(family, theta, p["x"].astype(LONG))
    w, T = p["w"].astype(LONG)[:, None], LONG(p["T"])
    peak = ell.max(1, keepdims=True)
    gamma = (
        np.exp((ell - peak) / T) if T > 0 else (np.arange(ell.shape[1])[None] == ell.argmax(1)[:, None]).astype(LONG)
    )
    total = gamma.sum(1, keepdims=True)
    gamma, rows = gamma / total, peak + (T * np.log(total) if T > 0 else 0)
    used = np.where(gamma > 0, gamma * np.where(gamma > 0, sizes, 0), 0).sum(1, keepdims=True)
    counts = w > 0
    return w * gamma, np.where(counts, w * rows, 0).sum(), np.where(counts, w * (used + np.abs(rows)), 0).sum()


def m_step(family: str, theta: Theta, p: dict[str, Any], gamma: np.ndarray) -> Theta:
    """θ⁺ of wγ."""
    x, N_k = p["x"].astype(LONG), gamma.sum(0)
    eps = float(np.finfo(p["x"].dtype).eps)
    there, safe = N_k > 0, np.where(N_k > 0, N_k, 1)
    new = {"pi": N_k / N_k.sum()}

    def where(value: np.ndarray, name: str) -> np.ndarray:
        return np.where(there.reshape((-1,) + (1,) * (value.ndim - 1)), value, theta[name])

    if family == "student_t":
        return new | student_step(theta, x, gamma, where, eps)
    if family in WITH_MATRICES:
        c = x.mean(0)
        new["mu"] = mu = where(c + gamma.T @ (x - c) / safe[:, None], "mu")
        d = x[:, None] - mu[None]
        if family in COVARIANCES:
            S = np.einsum("nk,nkd,nke->kde", gamma, d, d)
            return new | {
                "Sigma": S.sum(0) / N_k.sum() if family == "tied" else where(S / safe[:, None, None], "Sigma")
            }
        if family == ANALYSERS:
            found = analysed(np.einsum("nk,nkd,nke->kde", gamma, d, d) / safe[:, None, None], theta, eps)
            return new | {name: where(value, name) for name, value in found.items()}
        S = np.einsum("nk,nkd->kd", gamma, d**2)
        if family == "isotropic":
            return new | {"sigma": np.sqrt(S.sum() / N_k.sum() / x.shape[1])}
        return new | {
            "sigma": where(np.sqrt(S.mean(1) / safe if family == "spherical" else S / safe[:, None]), "sigma")
        }
    if family == "categorical":
        counts = np.einsum("nk,ndc->kdc", gamma, (x[:, :, None] == np.arange(3)).astype(LONG))
        return new | {"probs": where(counts / np.maximum(counts.sum(2, keepdims=True), LONG(1e-4000)), "probs")}
    mean = gamma.T @ x / safe[:, None]
    if family == "von_mises_fisher":
        length = np.sqrt((mean**2).sum(1))
        mu = np.where(length[:, None] > 0, mean / np.where(length > 0, length, 1)[:, None], theta["mu"])
        apart = (gamma * ((x[:, None] - mu[None]) ** 2).sum(2)).sum(0) / safe / 2
        kappa = highest(lambda k: sphere_height(k, x.shape[1]) - k * apart, np.full_like(apart, 1e-9), 1 / eps**2)
        return new | {"mu": where(mu, "mu"), "kappa": where(kappa, "kappa")}
    if family == "gamma":
        spread = np.einsum("nk,nkd->kd", gamma, defect((x[:, None] - mean) / np.where(mean > 0, mean, 1)))
        spread = spread / safe[:, None]
        alpha = highest(lambda a: gamma_height(a) - a * spread, np.full_like(mean, 1e-8), 1 / eps**2)
        return new | {"concentration": where(alpha, "concentration"), "rate": where(alpha / mean, "rate")}
    if family == "negative_binomial":

        def of_rows(r: np.ndarray) -> np.ndarray:
            terms = sum(negative_binomial_terms(x[:, None], mean, r))
            return np.where(mean > 0, (gamma[..., None] * terms).sum(0), 0)

        r = highest(of_rows, np.full_like(mean, 1e-9), np.maximum(mean, 1) / eps)
        return new | {"mean": where(mean, "mean"), "concentration": where(r, "concentration")}
    name = "probs" if family == "bernoulli" else "rate"
    return new | {name: where(1 / mean if family == "exponential" else mean, name)}


def student_step(theta: Theta, x: np.ndarray, gamma: np.ndarray, where: Callable[..., Any], eps: float) -> Theta:
    """μ and Σ with the weights (ν + D)/(ν + δ), and ν of most likelihood there."""

    def squares(theta: Theta) -> np.ndarray:
        sigma, inverse = factors(theta)
        return (np.einsum("kde,nke->nkd", inverse, (x[:, None] - theta["mu"]) / sigma) ** 2).sum(2)

    D, N_k = x.shape[1], gamma.sum(0)
    counted = gamma * (theta["df"] + D) / (theta["df"] + squares(theta))
    total = np.where(N_k > 0, counted.sum(0), 1)
    mu = where(theta["mu"] + np.einsum("nk,nkd->kd", counted, x[:, None] - theta["mu"]) / total[:, None], "mu")
    d = x[:, None] - mu[None]
    Sigma = where(np.einsum("nk,nkd,nke->kde", counted, d, d) / total[:, None, None], "Sigma")
    delta = squares({"mu": mu, "Sigma": Sigma})

    def of_rows(df: np.ndarray) -> np.ndarray:
        return (gamma * sum(student_terms(df, delta, D))).sum(0)

    df = highest(of_rows, np.full_like(N_k, 1e-3), 1 / eps)
    return {"mu": mu, "Sigma": Sigma, "df": where(df, "df")}


def analysed(S: np.ndarray, theta: Theta, eps: float) -> Theta:
    """Loadings of one factor and σ after fifty of Rubin and Thayer's steps on S, from θ's."""
    loading, variance = theta["loadings"][:, :, 0], theta["sigma"] ** 2
    diagonal = np.diagonal(S, axis1=1, axis2=2)
    for _ in range(50):
        beta = loading / variance
        beta = beta / (1 + (beta * loading).sum(1, keepdims=True))
        S_beta = np.einsum("kde,ke->kd", S, beta)
        second = 1 - (beta * loading).sum(1) + (beta * S_beta).sum(1)
        loading = S_beta / second[:, None]
        variance = np.maximum(diagonal - loading * S_beta, eps**0.4 * diagonal)
    return {"loadings": loading[:, :, None], "sigma": np.sqrt(variance)}


def highest(Q: Callable[[np.ndarray], np.ndarray], low: np.ndarray, high: Any) -> np.ndarray:
    """Where Q, of each entry alone, is highest from low to high: the best of many, and between its neighbours."""
    low, high = np.log(low), np.log(np.broadcast_to(high, low.shape).astype(LONG))
    width, share = (high - low) / 40, (np.sqrt(LONG(5)) - 1) / 2

    def at(log: np.ndarray) -> np.ndarray:
        return np.nan_to_num(Q(np.exp(log)), nan=-np.inf)

    best = low + width * np.argmax([at(low + i * width) for i in range(41)], axis=0)
    left, right = np.maximum(best - width, low), np.minimum(best + width, high)
    for _ in range(45):
        a, b = right - share * (right - left), left + share * (right - left)
        rises = at(a) < at(b)
        left, right = np.where(rises, a, left), np.where(rises, right, b)
    return np.exp((left + right) / 2)
