"""A component of noise beside the Gaussians: uniform over a box, wherever a row lies (Banfield & Raftery 1993).

    ℓ_n0 = log π_0 − log V                                                                                (eq:noise)

V is held; π_0 is the last entry of π, of K + 1, and the rest of θ is the K Gaussians' own. So γ has a last column, rows
of which take no part in μ and Σ, and the M-step is the family's on the other columns, with π_0 = Σγ_0/N.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jaxtyping import Array, Float
from numpyro import distributions as dist
from numpyro.distributions import constraints
from numpyro.primitives import Messenger

from jaxem._core.arrays import raw, shown
from jaxem._core.model import Theta
from jaxem._core.tracing import is_concrete
from jaxem._core.values import settle
from jaxem.families import _exponential_family as ef
from jaxem.families._mixture import Mixture, whole_rows_only
from jaxem.families._parts import Extras, Numerics
from jaxem.families.gaussian._factors import plain
from jaxem.families.gaussian._moments import Moments, log_weights
from jaxem.families.gaussian._scales import by_feature

BOX = "box"
WIDE = 2.0  # deviations beyond a mean that the box of a given volume has in its proportions


def with_noise(m: Mixture, volume: Any = None) -> Mixture:
    """The same Gaussian mixture and a component of noise, uniform over a box: outliers pull no mean and no covariance.

        p(x_n) = Σ_k π_k N(x_n | μ_k, Σ_k) + π_0 / V

    θ is the family's, with `pi` of K + 1 entries, the last of them π_0; so have γ, tables and labels K + 1 columns and
    values, of which the last is noise. V is held and counts for no parameter (mclust counts one more). The density is
    1/V wherever a row lies. Starts give noise the share 1/(K + 1); `inits.from_labels` takes label K for it.

    Args:
        m: a family of `jaxem.families.gaussian`, possibly with entries held, `with_prior` or `with_floor`.
        volume: V > 0, in the unit of x to the power D; `sample` then draws noise from a box of that volume, about the
            components and in their proportions. With None V is that of the box that bounds the rows, and the box is
            in θ: `box` (2, D), its lower and upper corners, an entry that is never updated. Whoever leaves it out of θ
            gets that of the x of the call, also inside `jit`, and finds it in `fit.theta`; so a fit's θ means the same
            for other rows. `em_stream` sees no box before the first pass: give θ one, or V.

    Raises:
        ValueError: for a model that is no Gaussian family or has noise already, a volume that is not a finite number
            > 0, and a box of volume 0.

    >>> import jax.numpy as jnp, jaxem
    >>> from jaxem.families import gaussian
    >>> x = jnp.array([[-0.1], [0.0], [0.1], [0.2], [50.0]])
    >>> theta = {"pi": jnp.array([0.5, 0.5]), "mu": jnp.zeros((1, 1)), "sigma": 1.0}
    >>> fit = jaxem.em(gaussian.with_noise(gaussian.isotropic, volume=60.0), theta, x)
    >>> fit.theta["pi"].round(2).tolist(), fit.theta["mu"].round(2).tolist()
    ([0.8, 0.2], [[0.05]])
    """
    m = whole_rows_only("with_noise", m)
    if "mu" not in m.parameters or not {"sigma", "Sigma", "volume"} & set(m.parameters):
        raise ValueError(f"m: must be a family of jaxem.families.gaussian, got {m!r}; noise stands beside Gaussians")
    if dict(m.shapes)["pi"] != "K":
        raise ValueError(f"m: has noise already, {m!r}; one component of noise is enough")
    if m.extras.maximizer is not None:
        raise ValueError("m: climbs a gradient; put noise first, gradient_m_step(with_noise(m))")
    if volume is not None:
        given = raw("volume", volume)
        if not (is_concrete(given) and given.shape == () and 0 < float(given) < float("inf")):
            raise ValueError(
                f"volume: must be a finite number > 0, in the unit of x to the power of D, got {shown(volume)}"
            )
        volume = float(given)
    noisy = Noisy(m.but(held=frozenset()), volume)
    shapes = (("pi", "K+1"), *m.shapes[1:], *(((BOX, "2 D"),) if volume is None else ()))
    said = "" if volume is None else f", {volume:g}"
    own = m.numerics
    return Mixture(
        name=f"gaussian.with_noise({noisy.m!r}{said})",
        program=noisy.program,
        shapes=shapes,
        kernel=noisy.table,
        statistics=noisy.statistics,
        update=noisy.update,
        guess=noisy.guess,
        numerics=Numerics(
            constant=noisy.constant,
            recentre=own.recentre and noisy.recentre,
            scales=own.scales,
            rounding=own.rounding and noisy.rounding,
            sizes_of_terms=own.sizes_of_terms and noisy.sizes,
        ),
        extras=Extras(prior=m.extras.prior and noisy.log_prior, complete=noisy.complete if volume is None else None),
        held=m.held | ({BOX} if volume is None else set()),
    )


@dataclass(frozen=True)
class Noisy:
    """A Gaussian family and V, as the functions of a `Mixture`."""

    m: Mixture
    volume: float | None

    def __post_init__(self) -> None:
        settle(self)

    # ---- θ, taken apart

    def alone(self, theta: Theta) -> Theta:
        """θ of the family by itself: π_k / (1 − π_0), or 1/K where noise takes all."""
        pi = theta["pi"][:-1]
        total = jnp.sum(pi)
        share = jnp.where(total > 0, pi / jnp.where(total > 0, total, 1), 1 / pi.size)
        return {name: theta[name] for name in self.m.parameters} | {"pi": share}

    def log_density(self, theta: Theta) -> Float[Array, ""]:
        """−log V."""
        if self.volume is not None:
            return jnp.asarray(-np.log(self.volume), theta["mu"].dtype)
        return -jnp.sum(jnp.log(theta[BOX][1] - theta[BOX][0]))

    # ---- the functions of a mixture

    def table(self, theta: Theta, x: Float[Array, "n D"]) -> Float[Array, "M n"]:
        """Of the family by itself, log(1 − π_0) more; and that of noise (eq:noise)."""
        pi = theta["pi"]
        others, noise = log_weights(jnp.stack([jnp.sum(pi[:-1]), pi[-1]]))
        noise = noise + self.log_density(theta) - self.constant(theta)
        table = self.m.relative_table(self.alone(theta), x) + others
        return jnp.concatenate([table, jnp.broadcast_to(noise, (1, x.shape[0]))])

    def constant(self, theta: Theta) -> Array:
        return jnp.asarray(self.m.common(self.alone(theta)))

    def statistics(self, theta: Theta, x: Float[Array, "n D"], gamma: Float[Array, "M n"]) -> Moments:
        """The family's, and Σγ_0 as the last of N_k."""
        moments = self.m.statistics(self.alone(theta), x, gamma[:-1])
        return moments._replace(N_k=jnp.append(moments.N_k, jnp.sum(gamma[-1])))

    def update(self, moments: Moments, theta: Theta, held: frozenset[str]) -> Theta:
        """π = N_k/N of all K + 1; μ and Σ by the family's M-step."""
        N_k = moments.N_k
        new = self.m.update(self.of_gaussians(moments), self.alone(theta), held | {"pi"})
        pi = theta["pi"] if "pi" in held else ef.possible(N_k / jnp.sum(N_k), N_k)
        return theta | new | {"pi": pi}

    def guess(self, centres: Float[Array, "K D"], x: Float[Array, "N D"], weights: Array | None = None) -> Theta:
        """The family's start, and an equal share for noise."""
        inner = self.m.guess(centres, x, weights)
        K = centres.shape[0]
        theta = inner | {"pi": jnp.full(K + 1, 1 / (K + 1), inner["pi"].dtype)}
        return theta if self.volume is not None else theta | {BOX: bounds(x, weights)}

    def complete(self, theta: dict[str, Any], x: Array, weights: Array | None, batched: bool) -> dict[str, Any]:
        """θ with the box of these rows, where it has none."""
        if BOX in theta:
            given = raw(f"theta[{BOX!r}]", theta[BOX])
            if is_concrete(given) and given.ndim >= 2 and not (given[..., 1, :] > given[..., 0, :]).all():
                raise ValueError(
                    f"theta[{BOX!r}]: must be lower corners and upper ones above them, got {shown(theta[BOX])}; "
                    "leave it out, and it bounds the rows"
                )
            return theta
        if jax.process_count() > 1:
            raise ValueError(
                "theta: has no 'box', and each process sees rows of its own; give θ one, or with_noise a V"
            )
        box = bounds(x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(float), weights)
        if is_concrete(box):
            flat = np.flatnonzero(~(np.asarray(box[1]) > np.asarray(box[0])))
            if flat.size:
                raise ValueError(
                    f"x: has no spread in column {flat[0]}, so the box of noise has volume 0; drop the column, or give "
                    "with_noise a volume"
                )
        lanes = np.shape(theta["pi"])[:1] if batched and "pi" in theta else ()
        return theta | {BOX: jnp.broadcast_to(box, (*lanes, *box.shape))}

    def log_prior(self, theta: Theta) -> Array:
        return jnp.asarray(self.m.log_prior(self.alone(theta)))

    # ---- what is known of rounding

    def of_gaussians(self, moments: Moments) -> Moments:
        return moments._replace(N_k=moments.N_k[:-1])

    def recentre(self, theta: Theta, new: Theta) -> tuple[Theta, Array]:
        assert self.m.numerics.recentre is not None
        _, cancelled = self.m.numerics.recentre(self.alone(theta), self.alone(new))
        return theta | {"mu": new["mu"]}, cancelled

    def rounding(self, theta: Theta, moments: Moments, held: frozenset[str]) -> tuple[Any, Any]:
        assert self.m.numerics.rounding is not None
        return self.m.numerics.rounding(self.alone(theta), self.of_gaussians(moments), held)

    def sizes(self, theta: Theta, moments: Moments) -> Array:
        assert self.m.numerics.sizes_of_terms is not None
        of_noise = moments.N_k[-1] * jnp.abs(self.log_density(theta))
        return self.m.numerics.sizes_of_terms(self.alone(theta), self.of_gaussians(moments)) + of_noise

    # ---- the program

    def program(self, x: Array | None = None, num_points: int | None = None) -> None:
        """z_n ~ Categorical(π),  x_n | z_n = k ~ N(μ_k, Σ_k),  x_n | z_n = K uniform over a box."""
        box = numpyro.param(BOX, constraint=constraints.real) if self.volume is None else None
        with AmidNoise(self, box):
            self.m.program(x, num_points)


def bounds(x: Float[Array, "N D"], weights: Array | None = None) -> Float[Array, "2 D"]:
    """The lower and upper corner of the box that bounds the rows that count."""
    if weights is None:
        return jnp.stack([jnp.nanmin(x, axis=0), jnp.nanmax(x, axis=0)])
    counts = (weights > 0)[:, None]
    low, high = (jnp.where(counts, x, end) for end in (jnp.inf, -jnp.inf))
    return jnp.stack([jnp.nanmin(low, axis=0), jnp.nanmax(high, axis=0)])


class AmidNoise(Messenger):
    """The family's program, of which z may be K as well: x is then uniform."""

    def __init__(self, noisy: Noisy, box: Array | None):
        self.noisy, self.box = noisy, box
        self.theta: dict[str, Any] = {}
        super().__init__(None)

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "sample" and msg["name"] == "x":
            K = jnp.shape(self.theta["mu"])[0]
            low, high = self.box_of() if self.box is None else (self.box[0], self.box[1])
            V = self.noisy.volume
            height = -jnp.sum(jnp.log(high - low)) if V is None else jnp.asarray(-np.log(V), low.dtype)
            msg["fn"] = Either(msg["fn"], self.theta["z"] == K, low, high, height)

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        self.theta[msg["name"]] = msg["value"]

    def box_of(self) -> tuple[Array, Array]:
        """A box of the given volume about the components, in their proportions."""
        theta = plain({name: jnp.asarray(self.theta[name]) for name in self.noisy.m.parameters})
        mu = theta["mu"]
        variance = by_feature(theta["sigma"], mu) ** 2 if "sigma" in theta else None
        if variance is None:
            variance = jnp.broadcast_to(jnp.diagonal(theta["Sigma"], axis1=-2, axis2=-1), mu.shape)
        reach = WIDE * jnp.sqrt(variance)
        low, high = jnp.min(mu - reach, axis=0), jnp.max(mu + reach, axis=0)
        assert self.noisy.volume is not None
        log_V, D = np.log(self.noisy.volume), mu.shape[1]
        half = (high - low) / 2 * jnp.exp((log_V - jnp.sum(jnp.log(high - low))) / D)
        return (low + high) / 2 - half, (low + high) / 2 + half


class Either(dist.Distribution):
    """The Gaussian's law, or where it is noise a density of e^height everywhere, drawn from a box."""

    def __init__(self, law: dist.Distribution, is_noise: Array, low: Array, high: Array, height: Array):
        self.law, self.is_noise, self.low, self.high, self.height = law, is_noise, low, high, height
        super().__init__(law.batch_shape, law.event_shape)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> constraints.Constraint:
        return constraints.real_vector

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        gaussian, uniform = jax.random.split(key)
        x = self.law.sample(gaussian, sample_shape)
        u = jax.random.uniform(uniform, jnp.shape(x), x.dtype)
        is_noise = jnp.broadcast_to(self.is_noise, jnp.shape(x)[:-1])[..., None]
        return jnp.where(is_noise, self.low + (self.high - self.low) * u, x)

    def log_prob(self, value: Array) -> Array:
        log_prob = self.law.log_prob(value)
        return jnp.where(jnp.broadcast_to(self.is_noise, jnp.shape(log_prob)), self.height, log_prob)
