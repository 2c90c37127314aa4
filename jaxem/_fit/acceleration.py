"""Steps beyond EM's own, kept where F rises: a guess at where EM is going, from where it has been.

EM's map M is followed in NumPyro's unconstrained coordinates u. An accelerator remembers some of the way and says where
the fixed point may be; one E-step there tells F. If F rose, the fit goes on from there, else from M(u), where EM would
have been: F never falls, whatever is guessed. After a guess that failed the next is nearer to M(u), and later: each
failure doubles the EM steps before it. One that gains next to nothing is followed by a step of EM's own, since these
alone are judged for the end.

    SQUAREM   u' = u − 2αr + α²v,   r = M(u) − u,   v = M(M(u)) − M(u) − r,   α = −‖r‖/‖v‖          (eq:squarem)
    Anderson  u' = M(u) − (ΔU + ΔR)ᵀc,   c = argmin ‖r − ΔRᵀc‖,   r = M(u) − u                       (eq:anderson)
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from jaxem._core.arrays import shown, static_count
from jaxem._core.model import Data, Model, Theta
from jaxem.families.gaussian._floor import is_floored

SHORTER = 4.0  # how much nearer to M(u) a guess is after one that failed
LONGEST = 8  # EM steps, at most, between two guesses
DAMPING = 1e-8  # of Anderson's least squares, in units of its largest singular value squared


@runtime_checkable
class Accelerator(Protocol):
    """What guesses; static, and its memory is arrays."""

    def nothing(self, u: Float[Array, " P"]) -> Any:
        """The memory at the start."""

    def guess(
        self, memory: Any, u: Float[Array, " P"], image: Float[Array, " P"], by_em: Bool[Array, ""]
    ) -> tuple[Float[Array, " P"], Bool[Array, ""], Any]:
        """(where to try, is it a guess?, the memory) at u, whose image is M(u); did EM's own step lead to u?"""


class Pair(NamedTuple):
    """SQUAREM's memory: the u before."""

    before: Float[Array, " P"]


@jax.tree_util.register_static
@dataclass(frozen=True)
class Squarem:
    """See `squarem`."""

    def __repr__(self) -> str:
        return "jaxem.squarem()"

    def nothing(self, u: Float[Array, " P"]) -> Pair:
        """No step yet."""
        return Pair(jnp.zeros_like(u))

    def guess(
        self, memory: Pair, u: Float[Array, " P"], image: Float[Array, " P"], by_em: Bool[Array, ""]
    ) -> tuple[Float[Array, " P"], Bool[Array, ""], Pair]:
        """From two steps of EM in a row (eq:squarem)."""
        r = u - memory.before
        v = (image - u) - r
        curvature = jnp.linalg.norm(v)
        alpha = -jnp.linalg.norm(r) / jnp.where(curvature > 0, curvature, 1)
        there = memory.before - 2 * alpha * r + alpha**2 * v
        return there, by_em & (curvature > 0) & (alpha < -1), Pair(u)  # α = −1: EM's own


class History(NamedTuple):
    """Anderson's memory: differences of the last u and residuals, the newest last, each pair in units of the latter."""

    moves: Float[Array, "M P"]  # Δu / ‖Δr‖
    bends: Float[Array, "M P"]  # Δr / ‖Δr‖; rows of 0 are none
    u: Float[Array, " P"]
    residual: Float[Array, " P"]  # r = M(u) − u
    points: Int[Array, ""]  # so far


@jax.tree_util.register_static
@dataclass(frozen=True)
class Anderson:
    """See `anderson`."""

    memory: int = 5

    def __repr__(self) -> str:
        return f"jaxem.anderson({self.memory})"

    def nothing(self, u: Float[Array, " P"]) -> History:
        """No step yet."""
        none = jnp.zeros((min(self.memory, u.size), u.size), u.dtype)
        return History(none, none, jnp.zeros_like(u), jnp.zeros_like(u), jnp.zeros((), jnp.int32))

    def guess(
        self, memory: History, u: Float[Array, " P"], image: Float[Array, " P"], by_em: Bool[Array, ""]
    ) -> tuple[Float[Array, " P"], Bool[Array, ""], History]:
        """Where the residual would vanish if it were linear (eq:anderson)."""
        residual = image - u
        move, bend = u - memory.u, residual - memory.residual
        size = jnp.linalg.norm(bend)
        known = (memory.points > 0) & (size > 0)
        unit = jnp.where(known, size, 1)
        moves, bends = (
            jnp.where(known, jnp.concatenate([old[1:], new[None] / unit]), old)
            for old, new in ((memory.moves, move), (memory.bends, bend))
        )
        left, s, right = jnp.linalg.svd(bends, full_matrices=False)  # ΔR = left diag(s) right
        limit = DAMPING * jnp.max(s) ** 2
        c = left @ (s / jnp.where(limit > 0, s**2 + limit, 1) * (right @ residual))
        there = image - c @ (moves + bends)
        after = History(moves, bends, u, residual, memory.points + 1)
        return there, memory.points > 0, after


def squarem() -> Squarem:
    """SQUAREM: every other step is a guess at the fixed point, from the two EM steps before it.

        u' = u − 2αr + α²v,   r = M(u) − u,   v = M(M(u)) − M(u) − r,   α = −‖r‖/‖v‖

    (scheme S3 of Varadhan & Roland 2008, Scand. J. Statist. 35) in unconstrained coordinates u; taken where F rises,
    else EM's own step is. It remembers one θ, and does well where one direction is slow.

    >>> import jax, jaxem
    >>> from jaxem.families import poisson
    >>> x = jax.numpy.repeat(jax.numpy.arange(10.0), jax.numpy.array([162, 267, 271, 185, 111, 61, 27, 8, 3, 1]))
    >>> theta = {"pi": [0.3, 0.7], "rate": [[1.0], [2.5]]}                          # deaths a day in The Times, 1910–12
    >>> plain = jaxem.em(poisson.mixture, theta, x, max_steps=5000)
    >>> fast = jaxem.em(poisson.mixture, theta, x, accelerate=jaxem.squarem())
    >>> bool(fast.free_energy >= plain.free_energy - 1e-3), bool(5 * fast.num_steps < plain.num_steps)
    (True, True)
    """
    return Squarem()


def anderson(memory: int = 5) -> Anderson:
    """Anderson's acceleration: each step is a guess at the fixed point, from the last few points and their residuals.

        u' = M(u) − (ΔU + ΔR)ᵀc,   c = argmin ‖r − ΔRᵀc‖,   r = M(u) − u

    (Walker & Ni 2011, SIAM J. Numer. Anal. 49; for EM, with F as the judge: Henderson & Varadhan 2019, J. Comput.
    Graph. Statist. 28) in unconstrained coordinates u; taken where F rises, else EM's own step is. It does well where
    several directions are slow.

    Args:
        memory: how many differences of points it remembers, ≥ 1; 5 to 10 are usual.

    >>> import jax, jaxem
    >>> from jaxem.families import gaussian
    >>> truth = {"pi": [0.5, 0.5], "mu": [[0.0], [1.5]], "sigma": 1.0}              # much overlap: EM is slow
    >>> x, _ = jaxem.sample(gaussian.isotropic, truth, jax.random.key(0), 300)
    >>> plain = jaxem.em(gaussian.isotropic, truth, x, max_steps=5000)
    >>> fast = jaxem.em(gaussian.isotropic, truth, x, accelerate=jaxem.anderson(5))
    >>> bool(fast.free_energy >= plain.free_energy - 1e-3), bool(5 * fast.num_steps < plain.num_steps)
    (True, True)
    """
    static_count("memory", memory, 1)
    return Anderson(int(memory))


def check(m: Any, accelerate: Any) -> Any:
    """A ValueError for what is no accelerator, and for a model whose M-step has a bound that no guess would know."""
    if accelerate is None:
        return None
    if isinstance(accelerate, Squarem | Anderson):
        if is_floored(m):
            raise ValueError(
                f"accelerate: a guess does not know the floor of {m!r}, below which F may be higher; leave out the one "
                "or the other (gaussian.with_prior keeps components from collapsing, too)"
            )
        return accelerate
    if accelerate is squarem or accelerate is anderson:
        raise ValueError(f"accelerate: got the function itself; call it, jaxem.{accelerate.__name__}()")
    raise ValueError(
        f"accelerate: must be jaxem.squarem() or jaxem.anderson(5), or None for plain EM, got {shown(accelerate)}"
    )


def refuse(what: str, accelerate: Any, why: str) -> None:
    """A ValueError where there is no acceleration."""
    if accelerate is not None:
        raise ValueError(f"accelerate: {what} takes none: {why}; leave it out, got {shown(accelerate)}")


class Course(NamedTuple):
    """What an accelerated fit remembers of its way."""

    accelerator: Any
    origin: Theta  # the θ that coordinates are about
    memory: Any
    by_em: Bool[Array, ""]  # did EM's own step lead here?
    known: Bool[Array, ""]  # is this point in the memory?
    wait: Int[Array, ""]  # EM steps before the next guess
    pause: Int[Array, ""]  # and after it, should it fail
    reach: Float[Array, ""]  # how far from M(u) it may be, in steps ‖M(u) − u‖
    length: Float[Array, ""]  # how far the open one is
    tried: Bool[Array, ""]  # is the open E-step at a guess?

    @classmethod
    def new(cls, accelerator: Any, theta: Theta, m: Model, data: Data) -> "Course | None":
        """At the start; None where nothing is accelerated, or nothing free."""
        if accelerator is None:
            return None
        u, _ = ravel_pytree(m.coordinates(theta, data).unconstrain(theta))
        no, zero, far = jnp.zeros((), bool), jnp.zeros((), jnp.int32), jnp.zeros((), u.dtype)
        course = cls(accelerator, theta, accelerator.nothing(u), no, no, zero, zero, far, far, no)
        return course.renewed(theta) if u.size else None

    def renewed(self, theta: Theta) -> "Course":
        """At another start, with nothing remembered."""
        blank = jax.tree.map(jnp.zeros_like, self)
        return blank._replace(origin=theta, pause=blank.pause + 1, reach=blank.reach + jnp.inf)


def guessed(m: Model, course: Course, theta: Theta, image: Theta, data: Data, stays: Array) -> tuple[Theta, Course]:
    """(where the next E-step is, the course): at a guess, or where EM has it, `image`; there if it `stays`."""
    coordinates = m.coordinates(course.origin, data)
    u, unravel = ravel_pytree(coordinates.unconstrain(theta))
    image_u, _ = ravel_pytree(coordinates.unconstrain(image))
    there, is_guess, memory = course.accelerator.guess(course.memory, u, image_u, course.by_em)
    keeps = stays | course.known
    memory = jax.tree.map(lambda old, new: jnp.where(keeps, old, new), course.memory, memory)
    step, beyond = jnp.linalg.norm(image_u - u), jnp.linalg.norm(there - image_u)
    length = jnp.minimum(beyond / step, course.reach)
    there = image_u + jnp.where(beyond > 0, length * step / beyond, 0) * (there - image_u)
    found = coordinates.constrain(unravel(there))
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(found)]))
    tried = is_guess & finite & ~keeps & (course.wait == 0)
    where = jax.tree.map(partial(jnp.where, tried), found, image)
    return where, course._replace(memory=memory, known=course.known | ~stays, length=length, tried=tried)


def after_guess(course: Course, rose: Array, quiet: Array, stays: Array) -> Course:
    """The course after that E-step: did F rise at the guess, and by next to nothing?"""
    zero = jnp.zeros((), jnp.int32)
    longer = jnp.minimum(2 * course.pause, LONGEST)
    wait = jnp.where(rose, jnp.where(quiet, 1, 0), course.pause).astype(jnp.int32)
    wait = jnp.where(course.tried, wait, jnp.maximum(course.wait - 1, 0))
    pause = jnp.where(course.tried, jnp.where(rose, zero + 1, longer), course.pause)
    reach = jnp.where(rose | (course.pause < 2), jnp.inf, course.length / SHORTER)  # one failure may be chance
    reach = jnp.where(course.tried, reach, course.reach)
    refused = course.tried & ~rose
    by_em = jnp.where(refused, course.by_em, ~course.tried)
    new = course._replace(by_em=by_em, known=refused, wait=wait, pause=pause, reach=reach, tried=jnp.zeros((), bool))
    return jax.tree.map(lambda old, new: jnp.where(stays, old, new), course, new)
