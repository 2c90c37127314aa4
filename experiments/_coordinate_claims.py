"""What coordinate_vs_gradient claims of its problems, each as a value and its bound."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _claims import worst
from _coordinate_problems import CLOSE, M, Point, Problem, at_posterior, ceiling, height

import jaxem
from jaxem import limits

from _results import Claim


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

    return [worst(name, STATEMENTS[name], [case["checks"][name] for case in cases]) for name in STATEMENTS]
