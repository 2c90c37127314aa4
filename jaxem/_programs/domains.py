"""What a parameter's constraint leaves to a closed form, and what ∇Q = 0 means there.

A closed form knows a maximiser over the natural domain of its argument. Where the parameter's constraint is an
interval and Q falls away from its maximiser on both sides of it, the constrained maximiser is the nearest point of
the interval; simplexes, covariances and their Cholesky factors are natural domains themselves. Of any other
constraint (ordered, correlations, sums to zero, …) nothing is known here, and the parameter climbs its gradient.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro.distributions import constraints

Bounds = tuple[Any, Any]


def base(constraint: constraints.Constraint) -> constraints.Constraint:
    """The constraint of one event, without the axes that `to_event` claims."""
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return constraint


def kind(constraint: constraints.Constraint) -> str:
    """'interval', 'simplex', 'covariance', 'cholesky' or 'other'."""
    if interval(constraint) is not None:
        return "interval"
    constraint = base(constraint)
    if constraint is constraints.simplex:
        return "simplex"
    if constraint is constraints.positive_definite:
        return "covariance"
    return "cholesky" if isinstance(constraint, type(constraints.lower_cholesky)) else "other"


def interval(constraint: constraints.Constraint) -> Bounds | None:
    """(lower, upper) bounds of every entry, ±∞ where there is none; None where it is not an interval."""
    constraint = base(constraint)
    if constraint is constraints.real:
        return -jnp.inf, jnp.inf
    if isinstance(constraint, constraints.greater_than):
        return constraint.lower_bound, jnp.inf
    if isinstance(constraint, constraints.less_than):
        return -jnp.inf, constraint.upper_bound
    if isinstance(constraint, constraints.interval) and constraint is not constraints.circular:
        return constraint.lower_bound, constraint.upper_bound
    return None


def is_unbounded(constraint: constraints.Constraint) -> bool:
    return base(constraint) is constraints.real


def is_narrower(bounds: Bounds, natural: tuple[float, float]) -> bool:
    """Does it leave out some of (lower, upper)?"""
    return bool(np.any(np.asarray(bounds[0]) > natural[0]) or np.any(np.asarray(bounds[1]) < natural[1]))


def project(constraint: constraints.Constraint, value: Array, pole: Any = False) -> Array:
    """The nearest point of an interval, of an open one the nearest number inside; a `pole` of Q at 0 stays there."""
    bounds, alone = interval(constraint), base(constraint)
    if bounds is None:
        return value
    lower, upper = (jnp.asarray(bound, value.dtype) for bound in bounds)
    is_closed = isinstance(alone, constraints.greater_than_eq | constraints.less_than_eq) or (
        isinstance(alone, constraints.interval) and not isinstance(alone, constraints.open_interval)
    )
    tiny = jnp.finfo(value.dtype).tiny  # the next number after 0 would be subnormal
    if not is_closed:
        lower = jnp.where(lower == 0, jnp.where(pole, 0, tiny), jnp.nextafter(lower, jnp.inf))
        upper = jnp.where(upper == 0, jnp.where(pole, 0, -tiny), jnp.nextafter(upper, -jnp.inf))
    value = jnp.where(jnp.isneginf(bounds[0]), value, jnp.maximum(value, lower))
    return jnp.where(jnp.isposinf(bounds[1]), value, jnp.minimum(value, upper))


def is_inside(constraint: constraints.Constraint, value: np.ndarray) -> bool:
    """Does θ satisfy its constraint, to rounding, its boundary included?"""
    bounds, slack = interval(constraint), 100 * np.finfo(value.dtype).eps
    if bounds is not None:
        lower, upper = (np.asarray(bound, value.dtype) for bound in bounds)
        return bool(np.all(value >= lower) and np.all(value <= upper))
    if kind(constraint) == "simplex":
        return bool(np.all(value >= 0) and np.all(np.abs(value.sum(-1) - 1) <= slack * value.shape[-1]))
    return bool(np.all(np.isfinite(value)) and np.all(constraint(jnp.asarray(value))))


def residual(constraint: constraints.Constraint, value: Any, gradient: Any) -> Any:
    """∂Q/∂p in every direction that the constraint leaves open, in natural units: all 0 at a maximum and only there.

    On a bound an entry counts if Q would rise inwards (Karush, Kuhn and Tucker).
    """
    bounds = interval(constraint)
    if bounds is not None:
        lower, upper = (np.asarray(bound, value.dtype) for bound in bounds)
        room = np.minimum(1, np.minimum(value - lower, upper - value))
        rounding = 8 * np.finfo(value.dtype).eps
        at_lower = value - lower <= rounding * np.where(np.isfinite(lower), np.abs(lower), 0)
        at_upper = upper - value <= rounding * np.where(np.isfinite(upper), np.abs(upper), 0)
        inwards = np.where(at_lower, np.maximum(gradient, 0), np.where(at_upper, np.minimum(gradient, 0), gradient))
        return np.asarray(np.where(at_lower | at_upper, inwards, room * gradient))
    if kind(constraint) == "simplex":
        if value.shape[-1] == 1:
            return np.zeros(0, value.dtype)  # it has nowhere to go
        return value * (gradient - np.sum(value * gradient, -1, keepdims=True))
    if kind(constraint) == "covariance":
        return (gradient + np.swapaxes(gradient, -1, -2)) @ value
    rows, columns = np.tril_indices(value.shape[-1])
    return (np.swapaxes(value, -1, -2) @ np.tril(gradient))[..., rows, columns]
