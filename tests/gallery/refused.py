"""Programs that are refused: each by one line that names the site, the cause and what to do instead."""

import jax.numpy as jnp
import numpyro
from numpyro import distributions as dist
from numpyro import handlers
from numpyro.contrib.control_flow import cond, scan

from gallery.registry import J, draws, entry, simplex, weights

EXAMPLE = "NumPyro example annotation"
CAPTURE = "NumPyro example capture_recapture"
OCCUPANCY = "public repository: occupancy models"
TESTS = "numpyro test_funsor: scan"
LABELS = J(draws(3).integers(0, 2, (4, 4)))
HISTORIES = J([[1, 0, 1], [0, 1, 0]])
VISITS = J([[0, 1, 0], [0, 0, 0], [1, 1, 0], [0, 0, 0]])
SEEN = J([True, True, False, True, False])
ROWS = J([-2.1, -1.7, 0.4, 1.9])
COVARIATES = J(draws(10).normal(size=(5, 2)))
RESPONSE = J([1.2, -0.4, 0.8, 0.1, -1.5])
SERIES = J([-1.2, -0.7, 0.9, 1.4])


def chain_parameters():
    A = numpyro.param("A", J([[0.8, 0.2], [0.3, 0.7]]), constraint=simplex)
    return A, numpyro.param("mu", J([-1.0, 1.0]))


def two_means():
    return numpyro.param("mu", J([-1.0, 1.0]))


@entry(ROWS, source="common: bounds of a prior computed in the program", refusal="'mu'.*bounds")
def bounds_of_the_data(x):
    """A uniform prior between the least and the largest row."""
    mu = numpyro.sample("mu", dist.Uniform(x.min(), x.max()).expand([2]).to_event(1))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)


@entry(LABELS, source=EXAMPLE, refusal="depends on the values of its arguments.*Python int")
def number_of_classes_from_the_data(labels):
    """The number of classes is the largest label: a structure that values fix."""
    num_classes = int(labels.max()) + 1
    pi = numpyro.sample("pi", dist.Dirichlet(jnp.ones(num_classes)))
    with numpyro.plate("item", len(labels)):
        c = numpyro.sample("c", dist.Categorical(pi))
        numpyro.sample("y", dist.Normal(1.0 * c, 1.0), obs=labels[:, 0])


@entry(HISTORIES, source=CAPTURE, refusal="'phi'.*scan")
def survival_of_each_year(histories):
    """Survival drawn anew each year, inside the scan."""
    rho = numpyro.sample("rho", dist.Uniform(0.0, 1.0))

    def step(z, y):
        phi = numpyro.sample("phi", dist.Uniform(0.0, 1.0))
        with numpyro.plate("animals", len(y)):
            z = numpyro.sample("z", dist.Bernoulli(phi * z))
            numpyro.sample("y", dist.Bernoulli(rho * z), obs=y)
        return z, None

    scan(step, jnp.ones(len(histories), int), histories.T)


@entry(VISITS, J(draws(8).normal(size=(4, 3))), source=OCCUPANCY, refusal="'mu1'")
def scores(visits, score):
    """Scores of a classifier: the mean where occupied is bounded below by the mean where not."""
    mu0 = numpyro.sample("mu0", dist.Normal(0.0, 1.0))
    mu1 = numpyro.sample("mu1", dist.TruncatedNormal(0.0, 2.0, low=mu0))
    with numpyro.plate("sites", len(score), dim=-2):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        with numpyro.plate("visits", score.shape[1]):
            numpyro.sample("s", dist.Normal(jnp.where(z == 1, mu1, mu0), 1.0), obs=score)


@entry(J([2.0, 3.1, 0.4]), source="Pyro example tracking_1d", refusal="'state'.*plate 'objects'")
def tracking(x):
    """Each object exists or not, and has a state of its own: an integral for each row."""
    with numpyro.plate("objects", len(x)):
        exists = numpyro.sample("exists", dist.Bernoulli(0.5))
        state = numpyro.sample("state", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(jnp.where(exists == 1, state, 0.0), 1.0), obs=x)


@entry(
    J([0.5, -1.2, 0.0, 0.8, 0.0]),
    SEEN,
    J([-1.0, 0.8, 0.4, 1.1, -0.6]),
    source="NumPyro tutorial bayesian_imputation",
    refusal="obs_mask|'u'|u_unobserved",
)
def continuous_imputation(u, seen, y):
    """A missing continuous covariate is used downstream: an integral for each row, not one random value."""
    b, m = numpyro.param("b", J([-1.0, 1.0])), numpyro.param("m", J(0.0))
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        u = numpyro.sample("u", dist.Normal(m, 1.0), obs=u, obs_mask=seen)
        numpyro.sample("y", dist.Normal(b[z] * u, 1.0), obs=y)


@entry(COVARIATES, RESPONSE, source="numpyro #778 as posted", refusal="^program: ")
def latent_used_outside_of_its_plate(covariates, y):
    """A plate of switches, used outside of it: NumPyro cannot, either."""
    beta = numpyro.sample("beta", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    with numpyro.plate("columns", 2):
        on = numpyro.sample("on", dist.Bernoulli(0.3))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(covariates @ (on * beta), 1.0), obs=y)


@entry(ROWS, J([0, 0, 1, 1]), source="public repository: mixture of linear mixed models", refusal="'z'.*plate")
def class_of_a_group_used_by_rows(x, group):
    """Each group has a class, and rows look theirs up outside of the plate of the groups."""
    mu = numpyro.param("mu", J([-1.0, 1.0]))
    with numpyro.plate("groups", 2):
        z = numpyro.sample("z", dist.Categorical(weights("pi", 2)))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("x", dist.Normal(mu[z[group]], 1.0), obs=x)


@entry(SERIES, source=f"{TESTS} without init", refusal="^program: .*scan")
def scan_without_init(y):
    """A scan whose carry begins as None: NumPyro's samplers raise, too."""
    A, mu = chain_parameters()

    def step(z, y):
        z = numpyro.sample("z", dist.Categorical(J([0.5, 0.5]) if z is None else A[z]))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)
        return z, None

    scan(step, None, y)


@entry(SERIES, source="forum: states collected in the carry", refusal="^program: ")
def carry_that_collects_states(y):
    """A carry that grows a record of all states: NumPyro's enumeration cannot, either."""
    A, mu = chain_parameters()

    def step(carry, y):
        record, z, t = carry
        z = numpyro.sample("z", dist.Categorical(A[z]))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)
        return (record.at[t].set(z), z, t + 1), None

    scan(step, (jnp.zeros(4, int), 0, 0), y)


@entry(SERIES, source="NumPyro docs: reverse scan", refusal="reverse")
def backwards(y):
    """A scan from the last step to the first."""
    A, mu = chain_parameters()

    def step(z, y):
        z = numpyro.sample("z", dist.Categorical(A[z]))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)
        return z, None

    scan(step, 0, y, reverse=True)


@entry(SERIES, source="NumPyro docs: control_flow.cond", refusal="cond")
def branches(y):
    """A branch with a site of its own on either side, by control_flow.cond."""
    mu = numpyro.param("mu", J([-1.0, 1.0]))
    m = cond(
        y[0] > 0,
        lambda _: numpyro.sample("m", dist.Normal(0.0, 1.0)),
        lambda _: numpyro.sample("m", dist.Normal(1.0, 1.0)),
        None,
    )
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("y", dist.Normal(mu[z] + m, 1.0), obs=y)


@entry(
    SERIES,
    J([True, False, True, True]),
    source="forum: autoregression over gaps",
    refusal="obs_mask|'y'|y_unobserved",
)
def autoregression_over_gaps(y, seen):
    """The missing value is the next one's regressor: an integral over a continuous latent in a scan."""
    A, c = chain_parameters()

    def step(carry, values):
        z, last = carry
        z = numpyro.sample("z", dist.Categorical(A[z]))
        y = numpyro.sample("y", dist.Normal(c[z] + 0.5 * last, 1.0), obs=values[0], obs_mask=values[1])
        return (z, y), None

    scan(step, (0, J(0.0)), (y, seen))


@entry(ROWS, source="beginners: obs forgotten", refusal="obs")
def obs_forgotten(x):
    """The data are never given to a site: nothing is observed."""
    mu = two_means()
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("x", dist.Normal(mu[z], 1.0))


@entry(ROWS, source="NumPyro docs: subsampling", refusal="'rows' subsamples 2 of 4")
def subsampled(x):
    """A plate that sees a part of the rows."""
    mu = two_means()
    with numpyro.plate("rows", len(x), subsample_size=2):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=numpyro.subsample(x, 0))


@entry(ROWS, source="forum", refusal="'z' is used outside of its plate")
def expanded_latent_used_in_a_plate(x):
    """A latent of every row by `.expand`, and its rows in a plate: two plates of one dimension."""
    mu = two_means()
    z = numpyro.sample("z", dist.Bernoulli(0.4).expand([len(x)]))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)


@entry(ROWS, source="forum: weights of rows by scale", refusal="scale")
def two_scales_in_one_sum(x):
    """Two latents that meet in one site, each under a scale of its own: no one sum has both."""
    mu = numpyro.param("mu", J([[-1.0, 0.0], [1.0, 2.0]]))
    with numpyro.plate("rows", len(x)):
        with handlers.scale(scale=2.0):
            z = numpyro.sample("z", dist.Bernoulli(0.4))
        with handlers.scale(scale=0.5):
            w = numpyro.sample("w", dist.Bernoulli(0.3))
        numpyro.sample("x", dist.Normal(mu[z, w], 1.0), obs=x)
