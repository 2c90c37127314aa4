"""Animals that are there and not seen: capture–recapture, occupancy, counts; and values that are missing."""

import jax
import jax.numpy as jnp
import numpyro
from numpyro import distributions as dist
from numpyro import handlers
from numpyro.contrib.control_flow import scan

from gallery.registry import J, draws, entry, unit_interval

CAPTURE = "NumPyro example capture_recapture"
HISTORIES = J([[1, 0, 1], [0, 1, 0]])  # animals × occasions
OCCUPANCY = "public repository: occupancy models"
VISITS = J([[0, 1, 0], [0, 0, 0], [1, 1, 0], [0, 0, 0]])  # sites × visits
COVER = J([-0.5, 0.1, 0.8, -1.0])


def cormack_jolly_seber(by_sex):
    def program(histories, sex):
        phi = numpyro.sample("phi", dist.Uniform(0.0, 1.0).expand([2] if by_sex else []).to_event(1 if by_sex else 0))
        rho = numpyro.sample("rho", dist.Uniform(0.0, 1.0))
        survival = phi[sex] if by_sex else phi

        def step(carry, y):
            first, z = carry
            with numpyro.plate("animals", len(sex)), handlers.mask(mask=first):
                alive = survival * z + (1 - first)
                z = numpyro.sample("z", dist.Bernoulli(dist.util.clamp_probs(alive)))
                numpyro.sample("y", dist.Bernoulli(dist.util.clamp_probs(rho * z)), obs=y)
            return (first | (y > 0), z), None

        n = len(sex)
        scan(step, (jnp.zeros(n, bool), jnp.ones(n, int)), histories.T)

    program.__doc__ = f"Survival and recapture of marked animals{', survival by sex' if by_sex else ''}."
    return program


SEX = J([0, 1])
for by_sex, name in ((False, "capture_recapture"), (True, "capture_recapture_by_sex")):
    entry(HISTORIES, SEX, source=CAPTURE, name=name)(cormack_jolly_seber(by_sex))


@entry(VISITS, J(draws(7).uniform(size=(4, 3)) < 0.8), source=OCCUPANCY)
def occupancy(visits, made):
    """Occupied or not, seen or not; some visits were not made."""
    psi = numpyro.sample("psi", dist.Beta(2.0, 2.0))
    p = numpyro.sample("p", dist.Beta(2.0, 2.0))
    with numpyro.plate("sites", len(visits), dim=-2):
        z = numpyro.sample("z", dist.Bernoulli(psi))
        with numpyro.plate("visits", visits.shape[1]), handlers.mask(mask=made):
            numpyro.sample("y", dist.Bernoulli(z * p), obs=visits)


@entry(VISITS, COVER, source=OCCUPANCY, climbs="beta alpha")
def occupancy_by_covariates(visits, cover):
    """Occupancy and detection each by a logistic regression, with false positives."""
    beta = numpyro.sample("beta", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 1.0))
    false = numpyro.sample("false", dist.Beta(2.0, 8.0))
    with numpyro.plate("sites", len(visits)):
        z = numpyro.sample("z", dist.Bernoulli(logits=beta[0] + beta[1] * cover))
        for j in range(visits.shape[1]):
            seen = jnp.where(z == 1, jax.nn.sigmoid(alpha), false)
            numpyro.sample(f"y_{j}", dist.Bernoulli(seen), obs=visits[:, j])


def truncated_poisson(rate, most):
    """log p of a Poisson count up to `most`, unnormalised."""
    counts = jnp.arange(most + 1)
    return counts * jnp.log(rate)[..., None] - jax.scipy.special.gammaln(counts + 1.0)


@entry(VISITS[:3], COVER[:3], source=OCCUPANCY, climbs="beta r")
def royle_nichols(visits, cover):
    """Abundance, a truncated Poisson, raises the chance of being seen."""
    beta = numpyro.sample("beta", dist.Normal(0.0, 1.0))
    r = numpyro.sample("r", dist.Beta(2.0, 2.0))
    with numpyro.plate("sites", len(visits), dim=-2):
        logits = truncated_poisson(jnp.exp(beta * cover)[:, None], 3)
        n = numpyro.sample("n", dist.Categorical(logits=logits))
        with numpyro.plate("visits", visits.shape[1]):
            numpyro.sample("y", dist.Bernoulli(1 - (1 - r) ** n), obs=visits)


@entry(J([[1, 2], [0, 0], [3, 2]]), source=OCCUPANCY, closed="p")
def n_mixture(counts):
    """Repeated counts of a population whose size is latent (Royle 2004)."""
    rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
    p = numpyro.sample("p", dist.Beta(2.0, 2.0))
    with numpyro.plate("sites", len(counts), dim=-2):
        n = numpyro.sample("n", dist.Categorical(logits=truncated_poisson(rate, 4)))
        with numpyro.plate("visits", counts.shape[1]):
            numpyro.sample("y", dist.Binomial(n, p), obs=counts)


@entry(J([[[1, 0], [2, 1]], [[0, 0], [1, 2]]]), source=OCCUPANCY)
def n_mixture_of_species(counts):
    """Repeated counts of several species, each with a rate of its own in its plate: a group of many rows."""
    p = numpyro.sample("p", dist.Beta(2.0, 2.0))
    with numpyro.plate("species", 2, dim=-3):
        rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
        with numpyro.plate("sites", 2, dim=-2):
            n = numpyro.sample("n", dist.Categorical(logits=truncated_poisson(rate, 4)))
            with numpyro.plate("visits", 2, dim=-1):
                numpyro.sample("y", dist.Binomial(n, p), obs=counts)


IMPUTATION = "NumPyro notebook: missing values in discrete covariates"
A, SEEN = J([0, 1, 0, 1, 0]), J([True, True, False, True, False])


@entry(A, SEEN, J([-1.0, 0.8, 0.4, 1.1, -0.6]), source=IMPUTATION, closed="p b")
def discrete_imputation(a, seen, y):
    """A covariate that is missing here and there is summed over; where it is seen, a factor of −∞ says so."""
    p = numpyro.sample("p", dist.Beta(2.0, 2.0))
    b = numpyro.sample("b", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("a", dist.Bernoulli(p))
        numpyro.factor("seen", jnp.where(seen & (z != a), -jnp.inf, 0.0))
        numpyro.sample("y", dist.Normal(b[z], 1.0), obs=y)


@entry(A, SEEN, J([-1.0, 0.8, 0.4, 1.1, -0.6]), source=IMPUTATION, closed="p b")
def why_it_is_missing(a, seen, y):
    """A covariate that is missing the more by its own value; the prior of the latent counts by a mask of False."""
    p = numpyro.sample("p", dist.Beta(2.0, 2.0).expand([2]).to_event(1))
    b = numpyro.sample("b", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    with numpyro.plate("rows", len(y)):
        with handlers.mask(mask=False):
            z = numpyro.sample("a", dist.Bernoulli(0.5))
        numpyro.factor("seen", jnp.where(seen & (z != a), -jnp.inf, 0.0))
        numpyro.sample("missing", dist.Bernoulli(p[z]), obs=1 - seen.astype(int))
        numpyro.sample("y", dist.Normal(b[z], 1.0), obs=y)


@entry(J([[1, 0, 1], [0, 1, 1]]), J([1, 0, 0]), source="classic: noisy-or diagnosis", closed="prior")
def noisy_or(findings, links):
    """Two diseases cause findings, each cause failing on its own."""
    prior = numpyro.param("prior", J([0.3, 0.2]), constraint=unit_interval)
    fails = numpyro.param("fails", J([[0.4, 0.6, 0.5], [0.7, 0.2, 0.3]]), constraint=unit_interval)
    with numpyro.plate("patients", len(findings)):
        a = numpyro.sample("a", dist.Bernoulli(prior[0]))
        b = numpyro.sample("b", dist.Bernoulli(prior[1]))
        for j in range(3):
            absent = (0.9 - 0.2 * links[j]) * fails[0, j] ** a * fails[1, j] ** b
            numpyro.sample(f"y_{j}", dist.Bernoulli(1 - absent), obs=findings[:, j])
