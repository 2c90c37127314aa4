"""What a mixture may have beside its program, its sums and its M-step: nothing of it is needed to fit one.

`Numerics` is how fast and how exactly sums are taken, and not what they are; `Extras` is what else a family can do.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Array
from numpyro.distributions import Distribution

from jaxem._core.model import Data, Theta
from jaxem._core.values import settle
from jaxem._rows.products import Products

if TYPE_CHECKING:
    from jaxem.families._mixture import Mixture


@dataclass(frozen=True)
class Numerics:
    """The same E-step, faster and with more digits: what a family knows of its own arithmetic.

    Each of these may be left out; the sums are the same, and slower or rounded more.

    Attributes:
        constant: θ → a term of ℓ that is the same for every row and component, and that the kernel leaves out; so hard
            assignments do not depend on the unit of x. None is 0.
        products: (θ, the θ about whose means statistics may be, may digits cancel?) → `Products`, the E-step by matrix
            products, for data of more than one chunk; used where it is accurate.
        squares: do those take ‖x_n − c‖², which a fit then computes once? Then `products` takes that c too.
        by_winner: (θ, x, argmax_k ℓ (n,), w (n,)) → `statistics` of the γ that says so, times w; None makes that γ.
        hard: is T known to be 0, as in k-means? Otherwise it is data.
        recentre: (θ, θ⁺) → (θ at which the statistics keep their digits, are those at θ too inexact?); None where
            they never are.
        scales: the names that this is for; where all are held, statistics are never too inexact.
        rounding: (θ, statistics, held) → (the nats by which rounding θ alone can move F, has a component of θ lost
            its digits?); None where that is less than the rounding of F itself.
        sizes_of_terms: (θ, statistics about θ's means) → Σ γ (sizes of the terms of ℓ), nats: those that cancel inside
            it round F by more than its own size tells. None where none do.
    """

    constant: Callable[[Theta], Array] | None = None
    products: Callable[..., Products] | None = None
    squares: bool = False
    by_winner: Callable[[Theta, Array, Array, Array], Any] | None = None
    hard: bool = False
    recentre: Callable[[Theta, Theta], tuple[Theta, Array]] | None = None
    scales: tuple[str, ...] = ()
    rounding: Callable[[Theta, Any, frozenset[str]], tuple[Any, Any]] | None = None
    sizes_of_terms: Callable[[Theta, Any], Array] | None = None

    def __post_init__(self) -> None:
        settle(self)


@dataclass(frozen=True)
class Extras:
    """What a family can do beside EM by its closed form; what is None it cannot, or need not.

    Attributes:
        check_support: (x, θ) → what is wrong with x's values, or None; numpy arrays, called on concrete x.
        condition: (θ, x, mask) → ℓ (K, n) of x[:, mask] alone, and the law of the other columns given those and
            z, a NumPyro distribution of batch shape (K, n) or (K, 1); for `jaxem.condition`.
        missing: m → the same mixture for rows with missing cells.
        gradient_form: (θ, ∇L, N_k, held) → θ⁺, the M-step written as a step along the likelihood's gradient
            (eq:XuJordan), for certificate C6.
        prior: θ → log p(θ), a term of F_T that no temperature divides, and of what `update` maximises.
        surface: (θ, θ_old, x) → the ℓ̂ (K, n) that the M-step climbs from θ_old, where it is not ℓ itself: ℓ̂ ≤ ℓ, and
            equal at θ_old, so that F rises with it. Of a family that completes its rows by latents of their own, what
            is expected of log p(x, latents, z = k | θ) at θ_old, plus the entropy of the latents there.
        maximizer: (m, statistics, θ, data) → θ⁺ in place of `update`, as `jaxem.gradient_m_step` puts here. With an
            attribute `last`, names: it maximises ℓ itself over those after `update` has done the others (`stages`).
        complete: (θ as a dict, x, weights, are there lanes?) → θ with those entries that data can say where θ does not.
    """

    check_support: Callable[[np.ndarray, dict[str, np.ndarray]], str | None] | None = None
    condition: Callable[[Theta, Array, np.ndarray], tuple[Array, Distribution]] | None = None
    missing: Callable[["Mixture"], "Mixture"] | None = None
    gradient_form: Callable[[Theta, Theta, Array, frozenset[str]], Theta] | None = None
    prior: Callable[[Theta], Array] | None = None
    surface: Callable[[Theta, Theta, Array], Array] | None = None
    maximizer: Callable[["Mixture", Any, Theta, Data], Theta] | None = None
    complete: Callable[[dict[str, Any], Array, Array | None, bool], dict[str, Any]] | None = None

    def __post_init__(self) -> None:
        settle(self)
