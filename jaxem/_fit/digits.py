"""What rounding leaves open in F, so that a fit can tell a gain from noise, and a collapse from a result."""

from typing import NamedTuple

from jaxtyping import Array

from jaxem._core.model import Expectation, Model, Theta
from jaxem.families._mixture import Mixture


class Digits(NamedTuple):
    """What rounding leaves open in F at a θ, nats."""

    sizes: Array | float  # Σ w (sizes of the terms of ℓ_n), where they cancel inside it
    slack: Array | float  # by how much rounding θ alone can move F
    lost: Array | bool  # has a component of θ lost its digits?


def digits_at(m: Model, theta: Theta, expectation: Expectation) -> Digits:
    """What rounding leaves open in F, beside the rounding of F_n itself: what a mixture's `Numerics` knows of it."""
    if not isinstance(m, Mixture):
        return Digits(0.0, 0.0, False)
    rounding, sizes_of_terms = m.numerics.rounding, m.numerics.sizes_of_terms
    sizes = 0.0 if sizes_of_terms is None else sizes_of_terms(theta, expectation.statistics)
    slack, lost = (0.0, False) if rounding is None else rounding(theta, expectation.statistics, m.held)
    return Digits(sizes, slack, lost)
