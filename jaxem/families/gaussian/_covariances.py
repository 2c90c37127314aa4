"""`tied`, `full`: covariance matrices Σ_k, pooled over the components or not.

    ℓ_nk = log π_k − ½ ‖L_k⁻¹(x_n − μ_k)‖² − log det L_k − (D/2) log 2π,   Σ_k = L_k L_kᵀ
    Σ_k  = Σ_n γ (x − μ_k⁺)(x − μ_k⁺)ᵀ / N_k;  tied: the same, summed over k, / N   (Celeux & Govaert 1995, VVV EEE)

Tables and statistics come twice: by differences, and by matrix products.
"""

from dataclasses import replace
from functools import partial

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from jaxem._core.model import Theta
from jaxem._rows.products import Products, by_gamma
from jaxem.families._mixture import Mixture
from jaxem.families._parts import Extras
from jaxem.families.gaussian._accuracy import (
    EXACT,
    and_one,
    farthest,
    linear,
    recentre,
    vector_loss,
)
from jaxem.families.gaussian._moments import (
    LIMIT,
    Moments,
    centre,
    centred,
    differences,
    divide_where_occupied,
    equal_weights_at,
    in_small_batches,
    leading,
    log_weights,
    spread_or_a_stand_in,
    step_weights_and_means,
    sum_and_count,
    sum_of_squares,
    underflown,
    update_weights_and_means,
)
from jaxem.families.gaussian._rounding import lifted, numerics, rounding_of_covariances, shrunk

BLOCK = 64  # rows


def by_component(Sigma: Array, mu: Float[Array, "K D"]) -> Float[Array, "K D D"]:
    """Σ of either shape (D, D), (K, D, D) as (K, D, D)."""
    return jnp.broadcast_to(Sigma, (*jnp.shape(mu), jnp.shape(mu)[-1]))


def outer(a: Float[Array, "K D"], b: Float[Array, "K D"]) -> Float[Array, "K D D"]:
    """a_k b_kᵀ."""
    return a[:, :, None] * b[:, None, :]


def whiteners(theta: Theta) -> tuple[Float[Array, "K D D"], Float[Array, " K"]]:
    """L_k⁻¹ and log det L_k, of Σ_k = L_k L_kᵀ (Cholesky); NaN where Σ_k is not positive definite."""

    def whiten(Sigma: Float[Array, "*k D D"]) -> tuple[Float[Array, "*k D D"], Float[Array, "*k"]]:
        factor = jnp.linalg.cholesky(Sigma)
        identity = jnp.broadcast_to(jnp.eye(Sigma.shape[-1], dtype=Sigma.dtype), Sigma.shape)
        inverse = lax.linalg.triangular_solve(factor, identity, left_side=True, lower=True)
        return inverse, jnp.sum(jnp.log(jnp.diagonal(factor, axis1=-2, axis2=-1)), axis=-1)

    inverse, log_det = in_small_batches(whiten, theta["Sigma"], cubes=1)
    return by_component(inverse, theta["mu"]), jnp.broadcast_to(log_det, theta["pi"].shape)


def program(x: Array | None = None, num_points: int | None = None) -> None:
    """z_n ~ Categorical(π),  x_n | z_n = k ~ N(μ_k, Σ_k)."""
    pi = numpyro.param("pi", constraint=constraints.simplex)
    mu = numpyro.param("mu", constraint=constraints.real)
    Sigma = numpyro.param("Sigma", constraint=constraints.positive_definite)
    if x is not None:
        x = jnp.reshape(x, (-1, jnp.shape(mu)[-1]))
        num_points = x.shape[0]
    factor = by_component(jnp.linalg.cholesky(jnp.asarray(Sigma)), mu)
    with numpyro.plate("points", num_points):
        z = numpyro.sample("z", dist.Categorical(pi), infer={"enumerate": "parallel"})
        numpyro.sample("x", dist.MultivariateNormal(jnp.asarray(mu)[z], scale_tril=factor[z]), obs=x)


# ---- the table and its statistics, by differences


def table(theta: Theta, x: Float[Array, "n D"]) -> Float[Array, "K n"]:
    """ℓ_nk = log π_k − ½ ‖L_k⁻¹(x_n − μ_k)‖² − log det L_k − (D/2) log 2π, less `constant`."""
    inverse, heights = whiteners_and_heights(theta)
    white = whitened(inverse, differences(x, theta["mu"]))
    return (heights - leading(heights))[:, None] - sum_of_squares(white) / 2


def whitened(inverse: Float[Array, "K D D"], difference: Float[Array, "K D n"]) -> Float[Array, "K D n"]:
    """L_k⁻¹(x_n − μ_k)."""
    return jnp.einsum("kde,ken->kdn", inverse, difference, precision=EXACT)


def constant(theta: Theta) -> Float[Array, ""]:
    """The highest peak, which tables leave out."""
    return leading(whiteners_and_heights(theta)[1])


def whiteners_and_heights(theta: Theta) -> tuple[Float[Array, "K D D"], Float[Array, " K"]]:
    """L_k⁻¹, and log π_k − log det L_k − (D/2) log 2π: ℓ at its peaks."""
    inverse, log_det = whiteners(theta)
    return inverse, log_weights(theta["pi"]) - log_det - theta["mu"].shape[1] / 2 * jnp.log(2 * jnp.pi)


def statistics(theta: Theta, x: Float[Array, "n D"], gamma: Float[Array, "K n"]) -> Moments:
    """Σγ, Σγ(x − μ_k), Σγ(x − μ_k)(x − μ_k)ᵀ, `tied`'s summed over k."""
    difference = differences(x, theta["mu"])
    weighted = gamma[:, None] * difference
    spread = products_of(weighted, difference)
    return Moments(jnp.sum(gamma, axis=1), jnp.sum(weighted, axis=2), pooled(spread, theta["Sigma"]))


def products_of(a: Float[Array, "K D n"], b: Float[Array, "K D n"]) -> Float[Array, "K D D"]:
    """Σ_n a_kn b_knᵀ; in single precision by blocks, whose sums lose fewer digits than one along all rows."""
    (K, D, n), size = a.shape, BLOCK
    if a.dtype == jnp.float64 or n <= size:
        return jnp.einsum("kdn,ken->kde", a, b, precision=EXACT)
    a, b = (jnp.pad(rows, ((0, 0), (0, 0), (0, -n % size))).reshape(K, D, -1, size) for rows in (a, b))
    return jnp.sum(jnp.einsum("kdbn,kebn->bkde", a, b, precision=EXACT), axis=0)


def pooled(sums: Float[Array, "K ..."], like: Array) -> Array:
    """Summed over k where there is one Σ."""
    return jnp.sum(sums, axis=0) if like.ndim == 2 else sums


# ---- the same by matrix products, about c


def full_products(theta: Theta, about: Theta, may_cancel: Array | bool) -> Products:
    """ℓ from L_k⁻¹(x − c) − L_k⁻¹(μ_k − c), for all k one product; Σγ(x − m_k)(x − c)ᵀ for all k another.

    m are the means of `about`. No square is expanded: (m_k − c) stands on one side only, and Σγ(x − m_k)(m_k − c)ᵀ is
    small where the fit is good. Where even that costs too much, a chunk is done by differences.
    """
    c, m = centre(theta), about["mu"]
    K, D = m.shape
    inverse, heights = whiteners_and_heights(theta)
    relative = (heights - leading(heights))[:, None]
    offset = jnp.einsum("kde,ke->kd", inverse, theta["mu"] - c, precision=EXACT)
    affine = jnp.concatenate([inverse, -offset[:, :, None]], axis=2).reshape(K * D, D + 1)
    cancels = may_cancel & jnp.all(vector_loss(farthest(theta, c, geometry(theta)[0]), inverse) <= LIMIT)

    def features(x: Float[Array, "n D"], squares: Array | None = None) -> tuple[Array, Array]:
        return x, and_one(x - c)

    def table(phi: tuple[Array, Array]) -> Float[Array, "K n"]:
        x, centred_and_one = phi
        white = lax.cond(
            cancels,
            lambda: jnp.matmul(affine, centred_and_one.T, precision=EXACT).reshape(K, D, -1),
            lambda: whitened(inverse, differences(x, theta["mu"])),
        )
        return relative - sum_of_squares(white, spelled_out=32) / 2

    def statistics(phi: tuple[Array, Array], gamma: Float[Array, "K n"]) -> tuple[Array, Array]:
        x, centred_and_one = phi
        identity = jnp.eye(D, dtype=x.dtype)
        columns = jnp.matmul(identity, x.T, precision=EXACT)  # xᵀ in memory: XLA would not put it there
        weighted = gamma[:, None] * (columns[None] - m[:, :, None])

        def by_product() -> Float[Array, "K D D+1"]:
            return jnp.matmul(weighted.reshape(K * D, -1), centred_and_one, precision=EXACT).reshape(K, D, D + 1)

        def by_differences() -> Float[Array, "K D D+1"]:
            shift = jnp.sum(weighted, axis=2, keepdims=True)
            return jnp.concatenate([products_of(weighted, differences(x, m)), shift], axis=2)

        return jnp.sum(gamma, axis=1), lax.cond(cancels, by_product, by_differences)

    def finish(sums: tuple[Array, Array]) -> Moments:
        N_k, S = sums
        shift = S[:, :, D]
        return Moments(N_k, shift, S[:, :, :D] - outer(shift, jnp.where(cancels, m - c, 0)))

    return Products(
        width=K * D,
        features=features,
        table=table,
        common=lambda x: leading(heights),
        sums=by_gamma(statistics),
        hard=None,
        finish=finish,
        accurate=None,
        accurate_when_hard=None,
    )


def tied_products(theta: Theta, about: Theta, may_cancel: Array | bool) -> Products:
    """In natural parameters, φ = (x, 1),  η_k = (P(μ_k − c), ℓ at c), beside what is common to all components.

    xᵀPx is, and Σ_k Σγxxᵀ = Σ_n x_n x_nᵀ needs no γ.
    """
    c = centre(theta)
    offset = theta["mu"] - c
    inverse, heights = whiteners_and_heights(theta)
    slope = jnp.einsum("kde,ke->kd", geometry(theta)[1], offset, precision=EXACT)
    intercept = heights - leading(heights) - jnp.sum(slope * offset, axis=1) / 2
    eta = jnp.concatenate([slope, intercept[:, None]], axis=1)
    inverse_and_zero = jnp.pad(inverse[0], ((0, 0), (0, 1)))

    def features(x: Float[Array, "n D"], squares: Array | None = None) -> tuple[Array]:
        return (and_one(x - c),)

    def second_moment(phi: tuple[Array], weights: Float[Array, " n"]) -> Float[Array, "F F"]:
        return jnp.matmul(phi[0].T, weights[:, None] * phi[0], precision=EXACT)

    def finish(sums: tuple[tuple[Array], Array]) -> Moments:
        (S, N_k), second = sum_and_count(sums[0][0]), sums[1][:-1, :-1]
        shift = S - N_k[:, None] * offset
        # Σγ(x − c)(x − c)ᵀ − Σγ(x − μ)(x − μ)ᵀ = Σγ(x − c) δᵀ + δ Σγ(x − μ)ᵀ,  δ = μ − c
        return Moments(N_k, shift, second - jnp.sum(outer(S, offset) + outer(offset, shift), axis=0))

    def common(phi: tuple[Array]) -> Float[Array, " n"]:
        white = jnp.matmul(phi[0], inverse_and_zero.T, precision=EXACT)
        return leading(heights) - jnp.sum(white**2, axis=1) / 2

    return linear(theta, c, geometry, (eta,), features=features, finish=finish, common=common, beside=second_moment)


def geometry(theta: Theta) -> tuple[Array, Array]:
    """√diag Σ_k (K, D) and Σ_k⁻¹ (K, D, D)."""
    inverse, _ = whiteners(theta)
    deviation = jnp.sqrt(jnp.diagonal(by_component(theta["Sigma"], theta["mu"]), axis1=1, axis2=2))
    return deviation, jnp.einsum("kde,kdf->kef", inverse, inverse, precision=EXACT)


# ---- the M-step


def update(moments: Moments, theta: Theta, held: frozenset[str], *, lifts: bool = True) -> Theta:
    """π and μ as for every Gaussian;  Σ_k = Σγ(x − μ_k⁺)(x − μ_k⁺)ᵀ / N_k, tied: summed over k, / N.

    An empty component keeps its own; of rows on a plane Σ_k is lifted off it (`_rounding.py`), if nothing else does.
    """
    old = theta["Sigma"]
    theta, _ = update_weights_and_means(moments, theta, held)
    if "Sigma" in held:
        return theta
    within, N_k = scatter(moments, theta, held), pooled(moments.N_k, old)
    variances = jnp.diagonal(within, axis1=-2, axis2=-1)
    within = lifted(within) if lifts else within
    if old.ndim == 2:
        return theta | {"Sigma": within / N_k}
    kept = jnp.any(underflown(variances, N_k[:, None], theta["mu"]), axis=1)[:, None, None]
    return theta | {"Sigma": jnp.where(kept, old, divide_where_occupied(within, N_k, otherwise=old))}


def scatter(moments: Moments, theta: Theta, held: frozenset[str]) -> Float[Array, "*k D D"]:
    """Σγ(x − μ_k⁺)(x − μ_k⁺)ᵀ, expanded about the old mean; tied: summed over k."""
    N_k, shift, spread = moments
    if "mu" not in held:
        move = divide_where_occupied(shift, N_k)
        correction = outer(move, N_k[:, None] * move - shift) - outer(shift, move)
        spread = spread + pooled(correction, spread)
    return (spread + jnp.swapaxes(spread, -2, -1)) / 2


def inflation(theta: Theta) -> tuple[Array, Array]:
    """√diag Σ_k and Σ_dd P_dd, both (K, D)."""
    inverse, _ = whiteners(theta)
    deviation = jnp.sqrt(jnp.diagonal(by_component(theta["Sigma"], theta["mu"]), axis1=1, axis2=2))
    return deviation, jnp.sum((inverse * deviation[:, None]) ** 2, axis=1)


def gradient_form(theta: Theta, gradient: Theta, N_k: Array, held: frozenset[str]) -> Theta:
    """The M-step as a step along ∇L (eq:XuJordan):  Σ_k⁺ + move moveᵀ = Σ_k + (2/N_k) Σ_k (∇_{Σ_k} L) Σ_k.

    Tied: ⟨move moveᵀ⟩ over the components on the left, and N for N_k on the right.
    """
    Sigma = theta["Sigma"]
    times_covariance = jnp.einsum("kde,ke->kd", by_component(Sigma, theta["mu"]), gradient["mu"], precision=EXACT)
    theta, move = step_weights_and_means(theta, gradient, times_covariance, N_k, held)
    if "Sigma" in held:
        return theta
    moved = outer(N_k[:, None] * move, move)
    step = 2 * jnp.einsum("...de,...ef,...fg->...dg", Sigma, gradient["Sigma"], Sigma, precision=EXACT)
    if Sigma.ndim == 2:
        total = jnp.sum(N_k)
        return theta | {"Sigma": Sigma + (step - jnp.sum(moved, axis=0)) / total}
    return theta | {"Sigma": Sigma + divide_where_occupied(step - moved, N_k)}


# ---- the start, the conditional, the families


def guess(
    centres: Float[Array, "K D"], x: Float[Array, "N D"], weights: Float[Array, " N"] | None = None, *, is_tied: bool
) -> Theta:
    """π = 1/K, μ the centres, Σ_k the pooled covariance S of the data.

    Its correlations are shrunk by 64·D·eps, what rounding leaves uncertain in them: with K ≤ D tight clusters S is
    all but singular, and what is positive definite must be so in this precision too.
    """
    deviations = centred(x, weights)
    deviations = deviations if weights is None else deviations * jnp.sqrt(weights)[:, None]
    total = x.shape[0] if weights is None else jnp.sum(weights)
    blocks = jnp.pad(deviations, ((0, -x.shape[0] % 256), (0, 0))).reshape(-1, 256, x.shape[1])
    S = jnp.sum(jnp.einsum("bnd,bne->bde", blocks, blocks, precision=EXACT), axis=0) / total  # in blocks: digits
    on_diagonal = jnp.eye(x.shape[1], dtype=bool)
    S = jnp.where(on_diagonal, spread_or_a_stand_in(jnp.diagonal(S), x)[None], S)
    Sigma = shrunk(S, jnp.asarray(64 * x.shape[1] * jnp.finfo(S.dtype).eps))
    return equal_weights_at(centres) | {"Sigma": Sigma if is_tied else by_component(Sigma, centres)}


def condition(theta: Theta, x: Float[Array, "n D"], mask: np.ndarray) -> tuple[Array, dist.Distribution]:
    """ℓ of the observed columns, (K, n), and the law of the hidden ones given those and k.

    With the observed features first, Σ = L Lᵀ holds it all: p(x_o) by L_oo, and
    x_h | x_o ~ N(μ_h + L_ho L_oo⁻¹(x_o − μ_o), L_hh L_hhᵀ), since L_hh L_hhᵀ is the Schur complement.
    """
    (observed,), (hidden,) = np.nonzero(mask), np.nonzero(~mask)
    order = np.concatenate([observed, hidden])
    mu, Sigma = theta["mu"], by_component(theta["Sigma"], theta["mu"])
    factor = jnp.linalg.cholesky(Sigma[:, order][:, :, order])
    split = len(observed)
    white = lax.linalg.triangular_solve(
        factor[:, :split, :split], differences(x[:, observed], mu[:, observed]), left_side=True, lower=True
    )
    log_det = jnp.sum(jnp.log(jnp.diagonal(factor, axis1=1, axis2=2)[:, :split]), axis=1)
    constant = log_weights(theta["pi"]) - log_det - split / 2 * jnp.log(2 * jnp.pi)
    mean = mu[:, None, hidden] + jnp.einsum("khd,kdn->knh", factor[:, split:, :split], white, precision=EXACT)
    law = dist.MultivariateNormal(mean, scale_tril=factor[:, None, split:, split:])
    return constant[:, None] - jnp.sum(white**2, axis=1) / 2, law


numerics_of_covariances = numerics(("Sigma",), inflation, rounding_of_covariances, constant=constant, scatter=scatter)

tied, full = (
    Mixture(
        name=name,
        program=program,
        shapes=(("pi", "K"), ("mu", "K D"), ("Sigma", shape)),
        kernel=table,
        statistics=statistics,
        update=update,
        guess=partial(guess, is_tied=shape == "D D"),
        numerics=replace(
            numerics_of_covariances,
            products=products,
            recentre=partial(recentre, geometry=geometry, squares=squares),
        ),
        extras=Extras(condition=condition, gradient_form=gradient_form),
    )
    for name, shape, products, squares in (
        ("gaussian.tied", "D D", tied_products, True),
        ("gaussian.full", "K D D", full_products, False),  # whose statistics are about the means: no square is expanded
    )
)
