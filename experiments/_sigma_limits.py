"""What is claimed of EM's fixed points and of the best there is, C17–C21: `jaxem.limits` against what the sweep finds.

Each statement is held against something that could break it: the shadow (C17) against where EM from k-means' centres
comes to rest, k-means' J (C18) against a bound computed anew from the dual point, the bound for all mixtures (C19)
against a mixture of hundreds of components, "no pair beats the mean" (C20′) against pairs from the data, from EM and
from the law, the bound of EM's rate (C21) against its Jacobian. What is a law or an estimate is told as one.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _sigma_claims import bounded, tested
from jax import lax

from jaxem import distortion, global_gap, limits, optimality_gap
from jaxem.families import gaussian

from _results import Claim

M = gaussian.isotropic.hold("pi", "sigma")
REST = 2_000  # EM steps, at most, to a fixed point
DUAL_STEPS = {True: 60, False: 120}  # by `quick`: rounds of C18's solver
MOST_ROWS, MANY_ROWS = 5_000, 1_000  # C18 and C19 are worked out for so many, and at fewer σ where there are many
SHARES = np.array([0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01])  # 1 − σ²/λ at which C20's law is tried
SIMPLE = 1e-3  # λ_max is simple if the next eigenvalue is less by this share of it
RIVALS, RIVAL_STEPS = 400, 200  # atoms of the mixture that C19 meets, and EM steps of their weights


# ---- at each σ


def em_step(x: jax.Array, mu: jax.Array, sigma: jax.Array) -> jax.Array:
    """The centres after one EM step, π = 1/K and σ held."""
    theta = limits.parameters(mu, sigma)
    return M.update(M.statistics(theta, x, jax.nn.softmax(M.table(theta, x), axis=0)), theta, M.held)["mu"]


def reach(x: jax.Array) -> jax.Array:
    """The largest distance of a row from the mean."""
    return jnp.sqrt(jnp.max(jnp.sum((x - jnp.mean(x, axis=0)[None]) ** 2, axis=1)))


def farthest(a: jax.Array, b: jax.Array) -> jax.Array:
    """max_k ‖a_k − b_k‖."""
    return jnp.sqrt(jnp.max(jnp.sum((a - b) ** 2, axis=-1)))


def at_rest(x: jax.Array, mu: jax.Array, sigma: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where EM's centres come to rest, to rounding or after REST steps, and the length of the last step."""
    still = 16 * jnp.finfo(x.dtype).eps * reach(x)

    def step(carry: tuple) -> tuple:
        mu, _, count = carry
        new = em_step(x, mu, sigma)
        return new, farthest(new, mu), count + 1

    start = (mu, jnp.full_like(still, jnp.inf), 0)
    mu, length, _ = lax.while_loop(lambda carry: (carry[1] > still) & (carry[2] < REST), step, start)
    return mu, length


def of_shadow(x: jax.Array, centres: jax.Array, sigma: jax.Array) -> dict[str, Any]:
    """C17 at one σ: the certificate, and how far from k-means' centres EM from them ends.

    EM stops a step short of its fixed point, which is then within step/(1 − L), and its arithmetic agrees with the
    exact map to N·eps·max ‖x − x̄‖. NaN where there is no certificate.
    """
    shadow = limits.shadow(x, centres, sigma)
    ends, step = at_rest(x, centres, sigma)
    error = len(x) * jnp.finfo(x.dtype).eps * reach(x)
    allowance = jnp.where(shadow.unique, (step + error) / jnp.where(shadow.unique, 1 - shadow.rate, 1), error)

    def certified(value: jax.Array) -> jax.Array:
        return jnp.where(shadow.exists, value, jnp.nan)

    return {
        "C17": limits.Bound(farthest(ends, centres), certified(shadow.distance_bound + allowance)),
        "shadow_smallest": certified(shadow.smallest_radius),
        "shadow_largest": jnp.where(shadow.unique, shadow.largest_radius, jnp.nan),
        "shadow_rate": certified(shadow.rate),
    }


def of_rate(x: jax.Array, theta: dict, spectral_radius: jax.Array) -> dict[str, Any]:
    """C21 at one fit. The Jacobian is a difference of terms of the size spread²/σ², and as exact as they are."""
    bound = limits.rate_bound(M, theta, x)
    rounding = limits.ROUNDING * jnp.finfo(x.dtype).eps * (1 + (reach(x) / theta["sigma"]) ** 2)
    return {"C21": limits.Bound(spectral_radius, bound + rounding), "rate_bound": bound}


# ---- once


def of_kmeans(x: jax.Array, centres: jax.Array, *, quick: bool) -> dict[str, Any]:
    """C18: k-means' J, and a bound of the best J, proved again from nothing but the dual point that was found."""
    gap = optimality_gap(x, centres, num_steps=DUAL_STEPS[quick])
    J = distortion(x, centres)
    again = limits.lower_bound(x, gap.dual, len(centres))
    rounding = limits.ROUNDING * jnp.finfo(x.dtype).eps * J
    return {"C18": limits.Bound(again, J + rounding), "relative": float((J - again) / jnp.where(J > 0, J, 1))}


def of_all_mixtures(x: jax.Array, rows: list[dict], centres: list, critical: float, *, quick: bool) -> list[dict]:
    """C19 at a few σ of the sweep: what any mixture could gain on EM's best fit, and what a large one does gain.

    Of too many rows, nothing.
    """
    if len(x) > MOST_ROWS:
        return []
    wanted = critical * np.geomspace(1.1, 1 / 16, 3 if quick or len(x) > MANY_ROWS else 9)
    sigmas = np.array([row["sigma"] for row in rows])
    found = []
    for index in sorted({int(np.abs(np.log(sigmas / sigma)).argmin()) for sigma in wanted}):
        theta = limits.parameters(jnp.asarray(centres[index], x.dtype), jnp.asarray(sigmas[index], x.dtype))
        gap = global_gap(gaussian.isotropic, theta, x)
        nats = float(gap.nats)
        found.append(
            {
                "sigma": float(sigmas[index]),
                "nats": nats,
                "sup_D": float(len(x) * np.expm1(nats / len(x))),
                "is_bound": bool(gap.is_bound),
                "rival": rival_gain(np.asarray(x, float), jax.tree.map(lambda v: np.asarray(v, float), theta)),
            }
        )
    return found


def rival_gain(x: np.ndarray, theta: dict) -> float:
    """Nats by which a mixture with an atom at each of up to RIVALS rows is above θ; EM finds their weights.

    θ itself is such a mixture, so that there are 0 at least.
    """
    atoms = x[:: -(-len(x) // RIVALS)]

    def log_kernel(mu: np.ndarray) -> np.ndarray:
        return -((x[:, None] - mu[None]) ** 2).sum(2) / (2 * theta["sigma"] ** 2)

    def log_sum(terms: np.ndarray) -> np.ndarray:
        return np.logaddexp.reduce(terms, axis=1)

    of_theta = log_sum(np.log(theta["pi"])[None] + log_kernel(theta["mu"]))
    ratio = log_kernel(np.concatenate([theta["mu"], atoms])) - of_theta[:, None]  # log f(x_n|a)/p(x_n|θ)
    peak = ratio.max(1)
    ratio = np.exp(ratio - peak[:, None])
    weights = np.concatenate([theta["pi"] / 2, np.full(len(atoms), 0.5 / len(atoms))])
    for _ in range(RIVAL_STEPS):
        weights = weights * (ratio / (ratio @ weights)[:, None]).mean(0)
    return max(float((np.log(ratio @ weights) + peak).sum()), 0.0)


def of_split(x: jax.Array, starts: jax.Array, sigmas: list[float]) -> dict[str, Any]:
    """C20: where two centres come to rest below σ_c, beside the law; and C20′: above it no pair beats the mean."""
    law, mean = limits.split(x), jnp.mean(x, axis=0)
    shares = jnp.asarray(SHARES, x.dtype)
    below = law.sigma * jnp.sqrt(1 - shares)
    predicted = law.amplitude * jnp.sqrt(law.sigma**2 - below**2)

    @jax.jit
    def rest(sigma: jax.Array) -> tuple[jax.Array, jax.Array]:
        apart = law.pair(mean, sigma) - mean[None]
        return at_rest(x, mean[None] + 1.5 * apart, sigma)  # not from the law's own centres: that would be no test

    pairs, steps = lax.map(rest, below)
    measured = jnp.sqrt(jnp.sum((pairs[:, 1] - pairs[:, 0]) ** 2, axis=-1)) / 2
    above = jnp.array([*(sigma for sigma in sigmas if sigma > law.sigma), law.sigma], x.dtype)
    rivals = jnp.concatenate([pairs, starts[:, :2]])
    no_better = jax.jit(
        lambda: lax.map(lambda s: lax.map(lambda mu: limits.before_the_split(x, mu, s), rivals), above)
    )()
    variances = np.linalg.eigvalsh(np.atleast_2d(np.cov(np.asarray(x, float).T, bias=True)))
    return {
        "C20": no_better,
        "simple": bool(len(variances) == 1 or variances[-2] < (1 - SIMPLE) * variances[-1]),
        "sigma": np.asarray(below),
        "law": np.asarray(predicted),
        "measured": np.asarray(measured),
        "rest": np.asarray(steps / (2 * shares)),  # at the rate 1 − 2(1 − σ²/λ) of a pitchfork
    }


def of_data(x: jax.Array, sigmas: np.ndarray, winner: jax.Array, starts: jax.Array, *, quick: bool) -> dict[str, Any]:
    """C18 and C20, which wait for no fit; None for C18 where there are too many rows."""
    few = len(x) <= MOST_ROWS
    return {"kmeans": of_kmeans(x, winner, quick=quick) if few else None, "split": of_split(x, starts, list(sigmas))}


# ---- the verdicts


def claims(rows: list[dict], found: dict[str, Any]) -> list[Claim]:
    """C17–C21, as far as they can be claimed of these data. No certificate at some σ is an answer, not a failure."""
    certified = [row for row in rows if np.isfinite(row["C17_bound"])]
    if certified:
        where = f"certified at {len(certified)} σ of {len(rows)}, from {max(row['sigma'] for row in certified):.3g}"
        verdicts = [bounded("C17", f"shadow: ‖EM's centres − k-means'‖ ≤ the certified distance ({where})", certified)]
    else:
        verdicts = [Claim("C17", f"shadow: no certificate at any of {len(rows)} σ, and nothing claimed", 0.0, 0.0)]
    if found["kmeans"]:
        share = f"{100 * found['kmeans']['relative']:.2g} %"
        text = f"global: the dual's bound, proved anew, ≤ k-means' J, which is within {share} of the best"
        verdicts.append(tested("C18", text, found["kmeans"]["C18"]))
    proved = [at for at in found["mixtures"] if at["is_bound"]]
    if proved:
        text = f"Lindsay: an atom at every row gains no more nats than N log(1 + sup D/N), at {len(proved)} σ"
        gains, nats = (jnp.array([at[name] for at in proved]) for name in ("rival", "nats"))
        verdicts.append(tested("C19", text, limits.Bound(gains, nats)))
    text = "split: at σ ≥ σ_c no two centres have a larger L than the mean (C20′), in nats"
    verdicts.append(tested("C20", text, found["split"]["C20"]))
    verdicts.append(bounded("C21", "rate: EM's spectral radius ≤ the Perron root of K² numbers", rows))
    return verdicts


def laws(found: dict[str, Any]) -> list[dict[str, Any]]:
    """What is no claim: C20's amplitude, which is asymptotic, and C19's supremum where the search is no proof."""
    told = []
    split = found["split"]
    if split["simple"]:
        error = split["measured"][-1] / split["law"][-1] - 1
        share = SHARES[-1]
        text = "two centres part by a² = 3λ²(σ_c² − σ²)/m₄ · (1 + O(ε)), ε = 1 − σ²/λ; a is "
        text += f"{error:+.1e} off, which is {error / share:+.2g} ε, at ε = {share:g}"
        told.append({"id": "C20", "kind": "law", "statement": text, "share": SHARES, **split})
        del told[-1]["C20"]
    if found["kmeans"] is None:
        told.append({"id": "C18", "kind": "untried", "statement": f"and C19, too: more than {MOST_ROWS:,} rows"})
    guessed = [at for at in found["mixtures"] if not at["is_bound"]]
    if guessed:
        least = min(guessed, key=lambda at: at["nats"])
        text = f"N log(1 + sup D/N) from {least['nats']:.3g} nats, at σ = {least['sigma']:.3g}: in more than three"
        text += " features the supremum is found by climbing, without proof"
        told.append({"id": "C19", "kind": "estimate", "statement": text})
    return told


def print_laws(laws: list[dict[str, Any]]) -> None:
    """Beside the claims, and told apart from them."""
    for law in laws:
        print(f"  {law['kind']:<8} {law['id']:<4} {law['statement']}")
