"""Mixture distributions in the shapes that people give them; each against the same with its latent spelled out."""

import jax.numpy as jnp
import numpyro
from numpyro import distributions as dist
from numpyro import handlers

from gallery.registry import J, entry, weights

X = J([-2.1, -1.7, 0.4, 1.9])
BLOCK = J([[-1.0, 0.2], [-0.8, -0.4], [1.2, 0.9]])
DOCS = "NumPyro docs: MixtureSameFamily, MixtureGeneral"


def parameters():
    return weights("w", 0.3, 0.7), numpyro.param("mu", J([-1.0, 1.0]))


def spelled(components, event=0):
    """The mixture with its latent, named as the site: `components(z, mu)` is the law given z."""

    def program(x, *rest):
        w, mu = parameters()
        with numpyro.plate_stack("rows", list(x.shape[: x.ndim - event])):
            z = numpyro.sample("x", dist.Categorical(w))
            numpyro.sample("value", components(z, mu, *rest), obs=x)

    return program


def normals(z, mu):
    return dist.Normal(mu[z], 1.0)


@entry(X, source="beginners: no plate at all", reference=spelled(normals), closed="mu w")
def without_a_plate(x):
    """An observed mixture without any plate."""
    w, mu = parameters()
    numpyro.sample("x", dist.MixtureSameFamily(dist.Categorical(w), dist.Normal(mu, 1.0)), obs=x)


def spelled_with_priors(x):
    w = numpyro.sample("w", dist.Dirichlet(J([2.0, 2.0])))
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0).expand([2]))
    s = numpyro.sample("s", dist.LogNormal(0.0, 1.0))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("x", dist.Categorical(w))
        numpyro.sample("value", dist.Normal(mu[z], s), obs=x)


def with_priors(plated):
    def program(x):
        w = numpyro.sample("w", dist.Dirichlet(J([2.0, 2.0])))
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0).expand([2]))
        s = numpyro.sample("s", dist.LogNormal(0.0, 1.0))
        with numpyro.plate("rows", len(x)) if plated else handlers.block(hide=[]):
            numpyro.sample("x", dist.MixtureSameFamily(dist.Categorical(w), dist.Normal(mu, s)), obs=x)

    program.__doc__ = (
        f"Priors of the components by `.expand` without a plate, rows {'with' if plated else 'without'} one."
    )
    return program


for plated, name in ((True, "expanded_priors"), (False, "expanded_priors_without_a_plate")):
    entry(X, source="beginners: batch shapes without plates", reference=spelled_with_priors, closed="w mu", name=name)(
        with_priors(plated)
    )


@entry(X, source=DOCS, closed="mu")
def one_latent_for_all_rows(x):
    """One switch for all rows, the rows without a plate."""
    mu = numpyro.param("mu", J([-1.0, 1.0]))
    z = numpyro.sample("z", dist.Bernoulli(0.4))
    numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)


def spelled_noise(x, seen):
    w, mu = parameters()
    with numpyro.plate("rows", len(x)), handlers.mask(mask=seen):
        z = numpyro.sample("x", dist.Categorical(w))
        parts = jnp.stack([dist.Normal(mu[0], 1.0).log_prob(x), dist.StudentT(3.0, mu[1], 2.0).log_prob(x)])
        numpyro.factor("value", parts[z, jnp.arange(len(x))])


SEEN = J([True, False, True, True])


@entry(X, SEEN, source="public repository: noise of laps", reference=spelled_noise)
def unlike_components_and_a_mask(x, seen):
    """A Normal and a Student t, some rows masked."""
    w, mu = parameters()
    with numpyro.plate("rows", len(x)), handlers.mask(mask=seen):
        parts = [dist.Normal(mu[0], 1.0), dist.StudentT(3.0, mu[1], 2.0)]
        numpyro.sample("x", dist.MixtureGeneral(dist.Categorical(w), parts), obs=x)


@entry(X, source=DOCS, reference=spelled(normals), closed="mu w")
def components_as_a_list(x):
    """`Mixture` with a list of like components."""
    w, mu = parameters()
    with numpyro.plate("rows", len(x)):
        parts = [dist.Normal(mu[0], 1.0), dist.Normal(mu[1], 1.0)]
        numpyro.sample("x", dist.Mixture(dist.Categorical(w), parts), obs=x)


@entry(X, source=DOCS, reference=spelled(normals), closed="mu")
def weights_by_logits(x):
    """Weights given by their logits."""
    w, mu = parameters()
    with numpyro.plate("rows", len(x)):
        law = dist.MixtureSameFamily(dist.Categorical(logits=jnp.log(w)), dist.Normal(mu, 1.0))
        numpyro.sample("x", law, obs=x)


def shifted(z, mu):
    return dist.Normal(mu[z] + J([0.0, 0.5]), 1.0)


@entry(BLOCK, source=DOCS, reference=spelled(shifted), closed="mu w")
def mixture_in_two_plates(x):
    """A mixture of every cell of two plates, its components differing along one."""
    w, mu = parameters()
    with numpyro.plate_stack("rows", [3, 2]):
        law = dist.MixtureSameFamily(dist.Categorical(w), dist.Normal(mu + J([[0.0], [0.5]]), 1.0))
        numpyro.sample("x", law, obs=x)


def vectors(z, mu):
    return dist.Normal(mu[z][..., None] + J([0.0, 0.5]), 1.0).to_event(1)


@entry(BLOCK, source=DOCS, reference=spelled(vectors, event=1), closed="mu w")
def vector_components(x):
    """Components over vectors, by to_event."""
    w, mu = parameters()
    with numpyro.plate("rows", len(x)):
        components = dist.Normal(mu[:, None] + J([[0.0, 0.5]]), 1.0).to_event(1)
        numpyro.sample("x", dist.MixtureSameFamily(dist.Categorical(w), components), obs=x)


def spelled_weights_by_row(x, w):
    mu = numpyro.param("mu", J([-1.0, 1.0]))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("x", dist.Categorical(w))
        numpyro.sample("value", dist.Normal(mu[z], 1.0), obs=x)


@entry(
    X,
    J([[0.5, 0.5], [0.2, 0.8], [0.9, 0.1], [0.4, 0.6]]),
    source=DOCS,
    reference=spelled_weights_by_row,
    closed="mu",
)
def weights_by_row(x, w):
    """Each row has weights of its own."""
    mu = numpyro.param("mu", J([-1.0, 1.0]))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("x", dist.MixtureSameFamily(dist.Categorical(w), dist.Normal(mu, 1.0)), obs=x)


def masked_parts(z, mu, mask):
    return dist.Normal(mu[z], 1.0).mask(mask[z])


@entry(X, J([True, False]), source="numpyro tests: masked components", reference=spelled(masked_parts))
def masked_component(x, mask):
    """A component with a mask on its law counts nothing where it is False."""
    w, mu = parameters()
    with numpyro.plate("rows", len(x)):
        law = dist.MixtureSameFamily(dist.Categorical(w), dist.Normal(mu, 1.0).mask(mask))
        numpyro.sample("x", law, obs=x)


def wrapped(z, mu):
    return dist.LogNormal(mu[z], 1.0)


@entry(jnp.exp(X), source=DOCS, reference=spelled(wrapped))
def transformed_components(x):
    """Components that are transformed distributions."""
    w, mu = parameters()
    with numpyro.plate("rows", len(x)):
        components = dist.TransformedDistribution(dist.Normal(mu, 1.0), dist.transforms.ExpTransform())
        numpyro.sample("x", dist.MixtureSameFamily(dist.Categorical(w), components), obs=x)


def scaled_students(z, mu):
    return dist.StudentT(4.0, mu[z], 1.0)


@entry(X, source=DOCS, reference=spelled(scaled_students), closed="w", climbs="mu")
def student_components(x):
    """Components without a formula for their location."""
    w, mu = parameters()
    with numpyro.plate("rows", len(x)):
        numpyro.sample("x", dist.MixtureSameFamily(dist.Categorical(w), dist.StudentT(4.0, mu, 1.0)), obs=x)
