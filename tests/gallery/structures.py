"""Structures of discrete latents: networks, trees, switches, change points, and mixtures without a fixed size."""

import jax.numpy as jnp
import numpyro
from numpyro import distributions as dist
from numpyro.contrib.control_flow import scan

from gallery.registry import J, draws, entry, simplex, unit_interval

TUTORIAL = "Pyro tutorial: enumeration"
ROWS = J([-2.1, -1.7, 0.4, 1.9])
COUNTS = J([0, 1, 4, 7])


@entry(ROWS[:1], source=TUTORIAL, closed="A B mu")
def three_in_a_row(x):
    """x → y → z, each drawn given the one before, and one observation."""
    A = numpyro.param("A", J([[0.8, 0.2], [0.3, 0.7]]), constraint=simplex)
    B = numpyro.param("B", J([[0.6, 0.4], [0.1, 0.9]]), constraint=simplex)
    mu = numpyro.param("mu", J([-1.0, 1.0]))
    a = numpyro.sample("a", dist.Categorical(J([0.4, 0.6])))
    b = numpyro.sample("b", dist.Categorical(A[a]))
    c = numpyro.sample("c", dist.Categorical(B[b]))
    numpyro.sample("x", dist.Normal(mu[c], 1.0), obs=x[0])


@entry(ROWS, source=TUTORIAL, closed="A mu")
def one_of_them_in_a_plate(x):
    """The last of the latents in a plate, the others above it."""
    A = numpyro.param("A", J([[0.8, 0.2], [0.3, 0.7]]), constraint=simplex)
    mu = numpyro.param("mu", J([-1.0, 1.0]))
    a = numpyro.sample("a", dist.Categorical(J([0.4, 0.6])))
    with numpyro.plate("rows", len(x)):
        c = numpyro.sample("c", dist.Categorical(A[a]))
        numpyro.sample("x", dist.Normal(mu[c], 1.0), obs=x)


@entry(J([[0, 1], [2, 1], [0, 0]]), source=TUTORIAL, closed="probs pi")
def features_with_vindex(x):
    """A table of components × features, indexed by the latent and the plate of the features; flat priors."""
    pi = numpyro.sample("pi", dist.Dirichlet(jnp.ones(2)))
    with numpyro.plate("components", 2, dim=-2), numpyro.plate("features", 2):
        probs = numpyro.sample("probs", dist.Dirichlet(jnp.ones(4)))
    with numpyro.plate("rows", len(x), dim=-2):
        z = numpyro.sample("z", dist.Categorical(pi))
        with numpyro.plate("features", 2) as feature:
            numpyro.sample("x", dist.Categorical(probs[z, feature]), obs=x)


def stick_breaking(betas):
    left = jnp.concatenate([jnp.ones(1), jnp.cumprod(1 - betas)])
    return jnp.concatenate([betas, jnp.ones(1)]) * left


@entry(ROWS, source="Pyro tutorial: Dirichlet process mixtures", closed="mu")
def stick_of_normals(x):
    """Weights broken off a stick, three Gaussian components."""
    with numpyro.plate("sticks", 2):
        betas = numpyro.sample("betas", dist.Beta(1.5, 2.0))
    with numpyro.plate("components", 3):
        mu = numpyro.sample("mu", dist.Normal(0.0, 3.0))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Categorical(stick_breaking(betas)))
        numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)


@entry(COUNTS, source="Pyro tutorial: Dirichlet process mixtures", closed="rate")
def stick_of_poissons(x):
    """Weights broken off a stick, components of Poisson counts."""
    with numpyro.plate("sticks", 2):
        betas = numpyro.sample("betas", dist.Beta(1.5, 2.0))
    with numpyro.plate("components", 3):
        rate = numpyro.sample("rate", dist.Gamma(2.0, 0.5))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Categorical(stick_breaking(betas)))
        numpyro.sample("x", dist.Poisson(rate[z]), obs=x)


@entry(J([0.4, 2.0, 0.9, 0.1]), J([0, 1, 1, 0]), source="public repository: noisy networks", closed="p")
def noisy_network(weight, seen):
    """Edges exist or not; their weights and what is reported depend on it."""
    density = numpyro.sample("density", dist.Beta(2.0, 2.0))
    scale = numpyro.sample("scale", dist.Gamma(2.0, 1.0).expand([2]).to_event(1))
    p = numpyro.sample("p", dist.Beta(2.0, 2.0).expand([2]).to_event(1))
    with numpyro.plate("edges", len(weight)):
        edge = numpyro.sample("edge", dist.Bernoulli(density))
        numpyro.sample("weight", dist.Exponential(1 / scale[edge]), obs=weight)
        numpyro.sample("seen", dist.Bernoulli(p[edge]), obs=seen)


EDGES = ((0, 1, 1), (0, 2, 0), (0, 3, 0), (1, 2, 0), (1, 3, 1), (2, 3, 1))


@entry(J([edge[2] for edge in EDGES]), source="classic: stochastic block model", closed="pi")
def block_model(edges):
    """Communities of four nodes: every pair of latents meets in an edge."""
    pi = numpyro.sample("pi", dist.Dirichlet(jnp.full(2, 2.0)))
    p = numpyro.sample("p", dist.Beta(2.0, 2.0).expand([2, 2]).to_event(2))
    z = [numpyro.sample(f"z_{i}", dist.Categorical(pi)) for i in range(4)]
    for e, (i, j, _) in enumerate(EDGES):
        numpyro.sample(f"y_{i}{j}", dist.Bernoulli(p[z[i], z[j]]), obs=edges[e])


@entry(J([1, 1, 0]), source="classic: rain, sprinkler, wet grass", closed="rain wet")
def sprinkler(wet_grass):
    """A belief network seen on several days."""
    rain = numpyro.param("rain", J(0.2), constraint=unit_interval)
    wet = numpyro.param("wet", J([[0.1, 0.8], [0.9, 0.99]]), constraint=unit_interval)
    with numpyro.plate("days", len(wet_grass)):
        r = numpyro.sample("r", dist.Bernoulli(rain))
        s = numpyro.sample("s", dist.Bernoulli(jnp.where(r == 1, 0.01, 0.4)))
        numpyro.sample("grass", dist.Bernoulli(wet[s, r]), obs=wet_grass)


@entry(ROWS, source="classic: hidden Markov tree", closed="A mu")
def hidden_tree(x):
    """A binary tree of states, its leaves seen."""
    A = numpyro.param("A", J([[0.8, 0.2], [0.3, 0.7]]), constraint=simplex)
    mu = numpyro.param("mu", J([-1.0, 1.0]))
    root = numpyro.sample("root", dist.Categorical(J([0.5, 0.5])))
    for i in range(2):
        child = numpyro.sample(f"child_{i}", dist.Categorical(A[root]))
        for j in range(2):
            leaf = numpyro.sample(f"leaf_{i}{j}", dist.Categorical(A[child]))
            numpyro.sample(f"x_{i}{j}", dist.Normal(mu[leaf], 1.0), obs=x[2 * i + j])


COVARIATES = J(draws(10).normal(size=(5, 2)))
RESPONSE = J([1.2, -0.4, 0.8, 0.1, -1.5])


def spike_and_slab(law):
    def program(covariates, y):
        beta = []
        for j in range(2):
            on = numpyro.sample(f"on_{j}", dist.Bernoulli(0.3))
            beta.append(numpyro.sample(f"beta_{j}", law(0.0, jnp.where(on == 1, 2.0, 0.1))))
        with numpyro.plate("rows", len(y)):
            numpyro.sample("y", dist.Normal(beta[0] * covariates[:, 0] + beta[1] * covariates[:, 1], 1.0), obs=y)

    program.__doc__ = (
        f"A coefficient's {law.__name__} prior is wide or narrow by a latent: a factor of the latents' graph."
    )
    return program


for law in (dist.Normal, dist.Laplace):
    entry(COVARIATES, RESPONSE, source="classic; numpyro #778", name=f"spike_and_slab_{law.__name__.lower()}")(
        spike_and_slab(law)
    )


@entry(ROWS, source="numpyro test_infer_discrete model2")
def prior_scale_by_a_latent(x):
    """The prior of a scale depends on a latent, the data on another that follows it."""
    loc = numpyro.sample("loc", dist.Normal(0.0, 1.0))
    z = numpyro.sample("z", dist.Categorical(J([0.3, 0.7])))
    scale = numpyro.sample("scale", dist.Gamma(J([2.0, 5.0])[z], 2.0))
    with numpyro.plate("rows", len(x)):
        w = numpyro.sample("w", dist.Categorical(J([[0.2, 0.8], [0.6, 0.4]])[z]))
        numpyro.sample("x", dist.Normal(loc + 1.0 * w, scale), obs=x)


@entry(COVARIATES, RESPONSE, source="numpyro #778, rewritten", closed="beta")
def variables_switched(covariates, y):
    """Spike and slab with the switch in the location: a coefficient counts or it does not."""
    beta = numpyro.sample("beta", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    on = [numpyro.sample(f"on_{j}", dist.Bernoulli(0.3)) for j in range(2)]
    with numpyro.plate("rows", len(y)):
        location = on[0] * beta[0] * covariates[:, 0] + on[1] * beta[1] * covariates[:, 1]
        numpyro.sample("y", dist.Normal(location, 1.0), obs=y)


@entry(J([[-1.0, 0.4], [0.8, 1.5]]), source="classic: random effects", ends="MAX_STEPS NONFINITE")
def scale_of_random_effects(x):
    """Random effects and their own scale: the posterior has no maximum, at scale zero."""
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    effect = numpyro.sample("effect", dist.Normal(0.0, tau).expand([2]).to_event(1))
    with numpyro.plate("groups", 2, dim=-2) as g, numpyro.plate("rows", 2):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("x", dist.Normal(effect[g[:, None]] + z, 1.0), obs=x)


@entry(J([3, 4, 0, 1, 0]), source="numpyro test_funsor change_point; coal-mining tutorials")
def change_point(counts):
    """One change point anywhere in the series, summed over."""
    rate = numpyro.sample("rate", dist.Exponential(1.0).expand([2]).to_event(1))
    change = numpyro.sample("change", dist.Categorical(jnp.full(5, 0.2)))
    late = (jnp.arange(5) >= change).astype(int)
    with numpyro.plate("years", 5):
        numpyro.sample("y", dist.Poisson(rate[late]), obs=counts)


@entry(J([3, 4, 0, 1, 0]), source="PyMC example: coal-mining disasters")
def change_point_uniform(counts):
    """One change point by a DiscreteUniform, and the two rates apart."""
    early, late = (numpyro.sample(name, dist.Gamma(2.0, 1.0)) for name in ("early", "late"))
    change = numpyro.sample("change", dist.DiscreteUniform(0, 4))
    with numpyro.plate("years", 5):
        rate = jnp.where(jnp.arange(5) < change, early, late)
        numpyro.sample("y", dist.Poisson(rate), obs=counts)


@entry(J([0, 1, 1]), source="numpyro test_funsor bernoulli_latent", closed="p q")
def latent_coins(x):
    """A coin for each row decides which coin is seen."""
    p = numpyro.sample("p", dist.Beta(1.1, 1.1))
    q = numpyro.sample("q", dist.Beta(1.1, 1.1).expand([2]).to_event(1))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(p))
        numpyro.sample("x", dist.Bernoulli(q[z]), obs=x)


@entry(J([[1, 0], [0, 0]]), source="Pyro example mixed_hmm", closed="A e")
def random_effects(moves):
    """Mixed hidden Markov model: a discrete random effect for each individual shifts its chain."""
    e = numpyro.param("e", J([0.4, 0.6]), constraint=simplex)
    A = numpyro.param("A", J([[[0.8, 0.2], [0.3, 0.7]], [[0.5, 0.5], [0.6, 0.4]]]), constraint=simplex)
    p = numpyro.param("p", J([0.2, 0.7]), constraint=unit_interval)
    with numpyro.plate("individuals", len(moves)):
        effect = numpyro.sample("effect", dist.Categorical(e))

    def step(z, y):
        with numpyro.plate("individuals", len(y)):
            z = numpyro.sample("z", dist.Categorical(A[effect, z]))
            numpyro.sample("y", dist.Bernoulli(p[z]), obs=y)
        return z, None

    scan(step, jnp.zeros(len(moves), int), moves.T)
