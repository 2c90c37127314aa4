"""How sure θ is: the inverse of the observed information, in the coordinates that are free and in those of θ.

    I = −∇²F(θ),   Cov(u) ≈ I⁻¹  or  I⁻¹ (Σ_n w_n s_n s_nᵀ) I⁻¹,   Cov(θ) ≈ G Cov(u) Gᵀ            (eq:errors)

u are NumPyro's unconstrained coordinates of what is free, as many as there are free parameters; a row's score is
s_n = ∇_u log p(x_n | θ), and G = ∂θ/∂u is the delta method's. F at T = 1 is the log-likelihood, with log p(θ) where
there is a prior: then the mode's curvature is that of the posterior (Laplace).

I_c = −∇²Q(θ; γ), what the information would be if the latents were seen, is the unit in which I is judged: the
eigenvalues of I_c⁻¹ I are 1 − those of EM's Jacobian (eq:missing), lie in [0, 1] at a maximum, and know neither the
units of x nor the coordinates. All of I (Louis 1982; Oakes 1999) is found at every θ by differentiating F twice; it
equals I_c (I − ∂M/∂θ) at a fixed point only (Meng & Rubin 1991).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxem._core import words
from jaxem._core.arrays import one_of, warn
from jaxem._core.checks import blame_x, enter
from jaxem._core.model import Data, Model, Theta, ThetaLike
from jaxem._core.objective import assign, weighted
from jaxem._core.tracing import is_concrete
from jaxem._programs.eliminate import log_partition
from jaxem._programs.program import Program
from jaxem.families._mixture import Mixture

KINDS = ("observed", "sandwich")
FAR = 0.02  # nats below the maximum, a fifth of a standard error: farther off, the curvature is another point's


class Uncertainty(NamedTuple):
    """What `standard_errors` found at one θ; P free parameters, E entries of θ."""

    standard_errors: Theta  # as θ, in its units; 0 where an entry is held
    covariance: Float[Array, "E E"]  # of all entries of θ, in the order of `jax.flatten_util.ravel_pytree(theta)`
    information: Float[Array, "P P"]  # −∇²F in unconstrained coordinates, in the order of `convergence_rate`
    least_eigenvalue: Float[Array, ""]  # of I_c⁻¹ I: 1 − the largest fraction of missing information
    nats_left: Float[Array, ""]  # ½∇Fᵀ I⁻¹ ∇F: about how far F is below the maximum nearby

    def __repr__(self) -> str:
        if not words.readable(self) or jnp.ndim(self.least_eigenvalue):
            return words.plain(self)
        least, left = words.number(self.least_eigenvalue, 3), words.number(self.nats_left, 2)
        first = f"Uncertainty: standard errors; least eigenvalue {least}, {left} nats left"
        return "\n".join([first, *(f"  {line}" for line in words.entries(self.standard_errors))])


def standard_errors(
    m: Model, theta: ThetaLike, x: Any, *, kind: str = "observed", weights: ArrayLike | None = None
) -> Uncertainty:
    """Standard errors of a fit, in the coordinates of θ: from the curvature of the log-likelihood (eq:errors).

    Where I is singular, or θ no maximum (two equal components, centres about to part, a saddle), there are none: all
    are NaN, with a warning where one can be given; inside `jit` a `least_eigenvalue` ≤ 1e-6 (in float32 3e-4) tells
    it. A π on the edge of its simplex, or another parameter on a bound, has no coordinate, and makes all NaN too.

    Args:
        m: the model, possibly with parameters held; those count as known, and have error 0.
        theta: a maximum of the likelihood (of the posterior, with priors): `em(m, theta, x).theta`.
        x: the data that were fitted.
        kind: "observed" is I⁻¹, right if the model is. "sandwich" is I⁻¹ (Σ w s sᵀ) I⁻¹, which is right also where it
            is not (Huber 1967; White 1982), for θ as what the fit tends to; it needs rows: a mixture, or a program
            with a plate of rows. It keeps N·P scores.
        weights: w (N,) ≥ 0, as in the fit; w_n rows are counted where there is one.

    Returns:
        An `Uncertainty`. `standard_errors` is a dict like θ; `covariance` is of all of its entries: those of a simplex
        sum to 0 in it, and of Σ both triangles are there.

    Raises:
        ValueError: for what `em` refuses, an unknown kind, nothing free, and for a concrete θ that is no maximum: it
            says by how many nats. Where θ is traced that is `nats_left` > 0.02, and NaN.

    >>> import jax, jax.numpy as jnp, jaxem
    >>> from jaxem.families import gaussian
    >>> x = jax.random.normal(jax.random.key(0), (400, 1))
    >>> theta = {"pi": jnp.ones(1), "mu": jnp.mean(x, axis=0)[None], "sigma": jnp.std(x)}
    >>> found = jaxem.standard_errors(gaussian.isotropic, theta, x)
    >>> print((found.standard_errors["mu"][0, 0] / (jnp.std(x) / 20)).round(4))               # σ/√N
    1.0
    >>> print((found.standard_errors["sigma"] / (jnp.std(x) / jnp.sqrt(800))).round(4))      # σ/√2N
    1.0
    """
    one_of("kind", kind, KINDS)
    theta, data = enter(m, theta, x, weights, plans=True)
    if not sum(leaf.size for leaf in jax.tree.leaves(m.coordinates(theta, data).unconstrain(theta))):
        raise ValueError("standard_errors: every parameter is held; leave at least one free")
    if kind == "sandwich":
        data = m.rows.divided('kind: "sandwich"', data)
    found = _uncertainty(m, theta, data, kind == "sandwich")
    blame_x(data.x, found.information)
    if is_concrete(found):
        _judge(found)
    return found


def _judge(found: Uncertainty) -> None:
    """A ValueError where θ is far from a maximum, a warning where the information says nothing."""
    left, least = float(found.nats_left), float(found.least_eigenvalue)
    if left > FAR:
        raise ValueError(
            f"theta: is no maximum of F on these data, but some {left:.2g} nats below one, where curvature is not "
            "uncertainty; pass jaxem.em(m, theta, x).theta, with the weights of this call, or hold what is on a floor"
        )
    if not least > floor_of(found.least_eigenvalue.dtype):
        what = "no maximum, or on the edge of what it may be" if least != least else f"least eigenvalue {least:.1e}"
        warn(
            f"theta: the information is singular there ({what}), so that standard errors are NaN: components are "
            "equal, empty or about to part, or a parameter is on its bound; use fewer, or hold what is not known"
        )


def floor_of(dtype: Any) -> float:
    """The least eigenvalue of I_c⁻¹ I that is told from 0; EM comes within reach of a maximum in 1/that many steps."""
    return max(float(jnp.finfo(dtype).eps) ** 0.5, 1e-6)


@partial(jax.jit, static_argnames="sandwich")
@jax.default_matmul_precision("highest")
def _uncertainty(m: Mixture | Program, theta: Theta, data: Data, sandwich: bool) -> Uncertainty:
    coordinates = m.coordinates(theta, data)
    free, unravel = ravel_pytree(coordinates.unconstrain(theta))
    dtype = free.dtype

    def at(u: Array) -> Theta:
        return coordinates.constrain(unravel(u))

    def gradient_of(u: Array) -> tuple[Array, Array]:
        found = jax.grad(lambda u: m.expect(at(u), data).free_energy)(u)
        return -found, found

    information, gradient = jax.jacfwd(gradient_of, has_aux=True)(free)
    complete = -jax.hessian(lambda u: m.objective(at(u), theta, data))(free)  # I_c
    root, values, vectors = in_units_of(complete, (information + information.T) / 2)
    least = jnp.min(values)
    good = least > floor_of(dtype)
    axes = jax.scipy.linalg.solve_triangular(root, vectors, lower=True, trans="T")  # I = Σ λ, Cov = Σ 1/λ along these
    along = (axes.T @ gradient) ** 2
    # where I has no inverse, by the metric of I_c: what about a step of EM gains
    left = jnp.sum(jnp.where(good, along / jnp.where(good, values, 1), along)) / 2
    good = good & (left <= FAR)
    inverse = (axes / jnp.where(good, values, jnp.nan)[None]) @ axes.T
    if sandwich:
        scores = jax.jacfwd(lambda u: rows_of_energy(m, at(u), data))(free)
        counted = scores if data.weights is None else weighted(scores, data.weights[:, None])
        inverse = inverse @ (scores.T @ counted) @ inverse
    entries, back = ravel_pytree(theta)
    G = jax.jacfwd(lambda u: ravel_pytree(at(u))[0])(free)
    covariance = G @ inverse @ G.T
    known = jnp.all(G == 0, axis=1)  # held
    covariance = jnp.where(known[:, None] | known[None], 0, covariance).astype(entries.dtype)
    errors = back(jnp.sqrt(jnp.maximum(jnp.diagonal(covariance), 0)))
    return Uncertainty(errors, covariance, information, least, left)  # eq:errors


def in_units_of(complete: Float[Array, "P P"], information: Float[Array, "P P"]) -> tuple[Array, Array, Array]:
    """(C with I_c = CCᵀ, eigenvalues and eigenvectors of C⁻¹ I C⁻ᵀ); NaN where I_c has no such root."""
    root = jnp.linalg.cholesky(complete)
    half = jax.scipy.linalg.solve_triangular(root, information, lower=True)
    relative = jax.scipy.linalg.solve_triangular(root, half.T, lower=True)
    finite = jnp.all(jnp.isfinite(relative))
    values, vectors = jnp.linalg.eigh(jnp.where(finite, (relative + relative.T) / 2, 0))
    return root, jnp.where(finite, values, jnp.nan), vectors


def rows_of_energy(m: Mixture | Program, theta: Theta, data: Data) -> Float[Array, " N"]:
    """log p(x_n | θ) of every row; of a program up to what no θ changes."""
    if isinstance(m, Program):
        terms, tables, _ = m.tables(theta, data.x)
        factors = [term.factor(tables[term.name]) for term in terms]
        return log_partition(factors, m.graph(terms, tables), 1.0, data.x.cut.plate)
    return assign(m.table(theta, data.x), 1.0, axis=0)[1]
