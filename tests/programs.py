"""NumPyro programs as a user would write them, each small enough for brute force over every assignment."""

import itertools
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import distributions as dist
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints
from numpyro.infer.util import log_density

RNG = np.random.default_rng(7)
positive, simplex = constraints.positive, constraints.simplex


def mixture(x):
    pi = numpyro.param("pi", jnp.array([0.3, 0.7]), constraint=simplex)
    mu = numpyro.param("mu", jnp.array([[-1.0, 0.0], [1.0, 0.5]]))
    sigma = numpyro.param("sigma", jnp.array([0.8, 1.2]), constraint=positive)
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Categorical(pi))
        numpyro.sample("x", dist.Normal(mu[z], sigma[z][..., None]).to_event(1), obs=x)


def same_family(x):
    pi = numpyro.param("pi", jnp.array([0.3, 0.7]), constraint=simplex)
    mu = numpyro.param("mu", jnp.array([[-1.0, 0.0], [1.0, 0.5]]))
    sigma = numpyro.param("sigma", jnp.array([0.8, 1.2]), constraint=positive)
    with numpyro.plate("rows", len(x)):
        components = dist.Normal(mu, sigma[:, None]).to_event(1)
        numpyro.sample("z", dist.MixtureSameFamily(dist.Categorical(pi), components), obs=x)


def general(x):
    pi = numpyro.param("pi", jnp.array([0.4, 0.6]), constraint=simplex)
    rate = numpyro.param("rate", 0.7, constraint=positive)
    mu = numpyro.param("mu", 0.5)
    with numpyro.plate("rows", len(x)):
        parts = [dist.Exponential(rate), dist.LogNormal(mu, 0.5)]
        numpyro.sample("z", dist.MixtureGeneral(dist.Categorical(pi), parts), obs=x)


def independent_pair(x):
    pa = numpyro.param("pa", jnp.array([0.3, 0.7]), constraint=simplex)
    pb = numpyro.param("pb", jnp.array([0.2, 0.5, 0.3]), constraint=simplex)
    mu = numpyro.param("mu", jnp.array([[-2.0, 0.0, 1.0], [-1.0, 2.0, 3.0]]))
    with numpyro.plate("rows", len(x)):
        a = numpyro.sample("a", dist.Categorical(pa))
        b = numpyro.sample("b", dist.Categorical(pb))
        numpyro.sample("x", dist.Normal(mu[a, b], 0.7), obs=x)


def dependent_pair(x):
    pa = numpyro.param("pa", jnp.array([0.3, 0.7]), constraint=simplex)
    pb = numpyro.param("pb", jnp.array([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]]), constraint=simplex)
    mu = numpyro.param("mu", jnp.array([-2.0, 0.0, 1.0]))
    with numpyro.plate("rows", len(x)):
        a = numpyro.sample("a", dist.Categorical(pa))
        b = numpyro.sample("b", dist.Categorical(pb[a]))
        numpyro.sample("x", dist.Normal(mu[b], 0.7), obs=x)


def latent_class(answers, num_classes, items_plate=False):
    rows, items = answers.shape
    pi = numpyro.param("pi", jnp.ones(num_classes) / num_classes, constraint=simplex)
    start = np.random.default_rng(1).dirichlet(np.ones(3), (num_classes, items))
    probs = numpyro.param("probs", jnp.asarray(start), constraint=simplex)
    with numpyro.plate("rows", rows, dim=-2 if items_plate else -1):
        z = numpyro.sample("z", dist.Categorical(pi))
        if items_plate:  # it is to the right of the rows'
            with numpyro.plate("items", items, dim=-1) as j:
                numpyro.sample("x", dist.Categorical(probs[z, j]), obs=answers)
        else:  # items one by one
            for j in range(items):
                numpyro.sample(f"x_{j}", dist.Categorical(probs[z, j]), obs=answers[:, j])


def items_left(answers, num_classes):
    pi = numpyro.param("pi", jnp.ones(num_classes) / num_classes, constraint=simplex)
    start = np.random.default_rng(1).uniform(0.2, 0.8, (answers.shape[1], num_classes))
    probs = numpyro.param("probs", jnp.asarray(start), constraint=constraints.unit_interval)
    with numpyro.plate("rows", len(answers), dim=-1):
        z = numpyro.sample("z", dist.Categorical(pi))
        with numpyro.plate("items", answers.shape[1], dim=-2) as j:
            numpyro.sample("x", dist.Bernoulli(probs[j[:, None], z]), obs=answers.T)


def hmm(y, emit):
    A = numpyro.param("A", jnp.array([[0.8, 0.2], [0.3, 0.7]]), constraint=simplex)
    pi = numpyro.param("pi", jnp.array([0.4, 0.6]), constraint=simplex)
    law = emit()

    def step(z_prev, y):
        z = numpyro.sample("z", dist.Categorical(A[z_prev]))
        numpyro.sample("y", law(z), obs=y)
        return z, None

    z_0 = numpyro.sample("z_0", dist.Categorical(pi))
    scan(step, z_0, y)


def gaussian_emission():
    mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))
    sigma = numpyro.param("sigma", jnp.array([0.7, 0.9]), constraint=positive)
    return lambda z: dist.Normal(mu[z], sigma[z])


def categorical_emission():
    B = numpyro.param("B", jnp.array([[0.6, 0.3, 0.1], [0.1, 0.2, 0.7]]), constraint=simplex)
    return lambda z: dist.Categorical(B[z])


def hmm_sequences(y, lengths):
    """A plate of sequences of different lengths: what lies after the end of one is masked."""
    A = numpyro.param("A", jnp.array([[0.8, 0.2], [0.3, 0.7]]), constraint=simplex)
    mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))

    def step(carry, y):
        z_prev, t = carry
        with numpyro.plate("sequences", len(y), dim=-1):
            z = numpyro.sample("z", dist.Categorical(A[z_prev]))
            with handlers.mask(mask=t < lengths):
                numpyro.sample("y", dist.Normal(mu[z], 0.8), obs=y)
        return (z, t + 1), None

    scan(step, (jnp.zeros(y.shape[0], int), 0), y.T)


def regressions(x, y):
    pi = numpyro.param("pi", jnp.array([0.5, 0.5]), constraint=simplex)
    beta = numpyro.param("beta", jnp.array([[1.0, 0.3], [-1.0, 0.2]]))
    sigma = numpyro.param("sigma", jnp.array([0.5, 0.8]), constraint=positive)
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Categorical(pi))
        numpyro.sample("y", dist.Normal(jnp.sum(x * beta[z], axis=-1), sigma[z]), obs=y)


def switch(x):
    """One latent for all rows, beside one for each."""
    pi = numpyro.param("pi", jnp.array([[0.3, 0.7], [0.6, 0.4]]), constraint=simplex)
    mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))
    s = numpyro.sample("s", dist.Bernoulli(0.4))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Categorical(pi[s]))
        numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)


def student(x):
    pi = numpyro.param("pi", jnp.array([0.5, 0.5]), constraint=simplex)
    mu = numpyro.param("mu", jnp.array([-1.0, 1.5]))
    df = numpyro.param("df", 4.0, constraint=positive)
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Categorical(pi))
        numpyro.sample("x", dist.StudentT(df, mu[z], 0.8), obs=x)


def gammas(x):
    pi = numpyro.param("pi", jnp.array([0.5, 0.5]), constraint=simplex)
    shape = numpyro.param("shape", jnp.array([2.0, 5.0]), constraint=positive)
    rate = numpyro.param("rate", jnp.array([3.0, 2.0]), constraint=positive)
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Categorical(pi))
        numpyro.sample("x", dist.Gamma(shape[z], rate[z]), obs=x)


def with_priors(x, counts):
    pi = numpyro.sample("pi", dist.Dirichlet(jnp.array([2.0, 3.0])))
    with numpyro.plate("components", 2):
        mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
        rate = numpyro.sample("rate", dist.Gamma(2.0, 0.5))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Categorical(pi))
        numpyro.sample("x", dist.Normal(mu[z], 0.7), obs=x)
        numpyro.sample("c", dist.Poisson(rate[z]), obs=counts)


def masked(x, seen):
    mu = numpyro.param("mu", jnp.array([[-1.0, 0.0], [1.0, 0.5]]))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        for j in range(2):
            with handlers.mask(mask=seen[:, j]):
                numpyro.sample(f"x_{j}", dist.Normal(mu[z, j], 0.7), obs=x[:, j])


def half_observed(x, seen):
    mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("x", dist.Normal(mu[z], 0.7), obs=x, obs_mask=seen)


def weighted(x, weights):
    pi = numpyro.param("pi", jnp.array([0.3, 0.7]), constraint=simplex)
    mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))
    with numpyro.plate("rows", len(x)), handlers.scale(scale=weights):
        z = numpyro.sample("z", dist.Categorical(pi))
        numpyro.sample("x", dist.Normal(mu[z], 0.7), obs=x)


def neural(x, y):
    """Each component's mean is a small network."""
    rng = np.random.default_rng(3)
    first = numpyro.param("first", jnp.asarray(rng.normal(size=(2, 1, 4))))
    last = numpyro.param("last", jnp.asarray(rng.normal(size=(2, 4))))
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        hidden = jnp.tanh(x[:, None] @ first)  # (2, rows, 4)
        means = jnp.einsum("krh,kh->kr", hidden, last)
        numpyro.sample("y", dist.Normal(means[z, jnp.arange(len(y))], 0.5), obs=y)


def covariances(x, guise):
    pi = numpyro.param("pi", jnp.array([0.5, 0.5]), constraint=simplex)
    mu = numpyro.param("mu", jnp.array([[-1.0, 0.0], [1.0, 0.5]]))
    start = jnp.array([[[1.0, 0.2], [0.2, 0.8]], [[0.7, -0.3], [-0.3, 1.5]]])
    constraint = constraints.positive_definite
    if guise == "scale_tril":
        start, constraint = jnp.linalg.cholesky(start), constraints.lower_cholesky
    S = numpyro.param("S", start, constraint=constraint)
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Categorical(pi))
        numpyro.sample("x", dist.MultivariateNormal(mu[z], **{guise: S[z]}), obs=x)


def one_mean_two_scales(x):
    """The mean is tied over components of unlike scales: its weights are γ/σ², and the M-step is ECM."""
    mu = numpyro.param("mu", 0.3)
    sigma = numpyro.param("sigma", jnp.array([0.5, 2.0]), constraint=positive)
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("x", dist.Normal(mu, sigma[z]), obs=x)


def offset_regression(x, y):
    """Two parameters in one location, solved for together; one of them with a prior."""
    alpha = numpyro.param("alpha", jnp.array([0.5, -0.5]))
    beta = numpyro.sample("beta", dist.Normal(0.0, 1.5))
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("y", dist.Normal(alpha[z] + beta * x, 0.7), obs=y)


def counts(binomial, multinomial, categorical):
    """Every conjugate pair of counts."""
    with numpyro.plate("components", 2):
        p = numpyro.sample("p", dist.Beta(2.0, 3.0))
        q = numpyro.sample("q", dist.Dirichlet(jnp.array([2.0, 2.0, 1.5])))
    r = numpyro.param("r", jnp.array([[0.2, 0.8], [0.5, 0.5]]), constraint=simplex)
    with numpyro.plate("rows", len(binomial)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("b", dist.Binomial(7, p[z]), obs=binomial)
        numpyro.sample("m", dist.Multinomial(5, q[z]), obs=multinomial)
        numpyro.sample("c", dist.Categorical(r[z]), obs=categorical)


def factorial_hmm(y):
    """Two chains that meet in what they emit."""
    A = numpyro.param("A", jnp.array([[0.8, 0.2], [0.3, 0.7]]), constraint=simplex)
    B = numpyro.param("B", jnp.array([[0.6, 0.4], [0.1, 0.9]]), constraint=simplex)
    mu = numpyro.param("mu", jnp.array([[-2.0, 0.0], [1.0, 3.0]]))

    def step(before, y):
        a = numpyro.sample("a", dist.Categorical(A[before[0]]))
        b = numpyro.sample("b", dist.Categorical(B[before[1]]))
        numpyro.sample("y", dist.Normal(mu[a, b], 0.8), obs=y)
        return (a, b), None

    scan(step, (0, 1), y)


def emissions_that_are_mixtures(y, covariate, end):
    """A latent inside each step, transitions that vary with time, a switch above, and something after the last step."""
    A = numpyro.param("A", jnp.array([[[0.8, 0.2], [0.3, 0.7]], [[0.5, 0.5], [0.4, 0.6]]]), constraint=simplex)
    w = numpyro.param("w", jnp.array([0.3, 0.7]), constraint=simplex)
    mu = numpyro.param("mu", jnp.array([[-2.0, 0.0], [1.0, 3.0]]))
    s = numpyro.sample("s", dist.Bernoulli(0.3))

    def step(z_prev, inputs):
        y, u = inputs
        z = numpyro.sample("z", dist.Categorical(A[u, z_prev]))
        c = numpyro.sample("c", dist.Categorical(w))
        numpyro.sample("y", dist.Normal(mu[z, c] + s, 0.8), obs=y)
        return z, None

    z, _ = scan(step, 0, (y, covariate))
    numpyro.sample("end", dist.Normal(2.0 * z, 1.0), obs=end)


def disguised(y):
    """The state is carried as an indicator: NumPyro rolls this scan itself."""
    A = numpyro.param("A", jnp.array([[0.8, 0.2], [0.3, 0.7]]), constraint=simplex)
    mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))

    def step(before, y):
        z = numpyro.sample("z", dist.Categorical(before @ A))
        numpyro.sample("y", dist.Normal(mu[z], 0.8), obs=y)
        return jax.nn.one_hot(z, 2), None

    scan(step, jnp.array([1.0, 0.0]), y)


class Case(NamedTuple):
    """A program, its arguments, and whether all of its M-step is closed, so that certificate C3 speaks of all of θ."""

    program: Any
    x: Any
    closed: bool = True
    solved: float = 1e-12  # how far C3 of a least-squares solution may be off: eps times the condition of its equations
    scaled: bool = False  # weights: NumPyro multiplies inside the sum over assignments


def data(*shape):
    return jnp.asarray(RNG.normal(size=shape))


SEEN = jnp.array([[True, False], [True, True], [False, True], [False, False], [True, True]])
ANSWERS = jnp.asarray(RNG.integers(0, 3, (5, 3)))

CASES = {
    "mixture": Case(mixture, data(5, 2)),
    "same_family": Case(same_family, data(5, 2)),
    "general": Case(general, jnp.exp(data(5))),
    "independent_pair": Case(independent_pair, data(4)),
    "dependent_pair": Case(dependent_pair, data(4)),
    "latent_class": Case(latent_class, (ANSWERS, 2)),
    "latent_class_right": Case(latent_class, (ANSWERS, 2, True)),
    "latent_class_left": Case(items_left, (ANSWERS % 2, 2)),
    "gaussian_hmm": Case(partial(hmm, emit=gaussian_emission), data(6)),
    "categorical_hmm": Case(partial(hmm, emit=categorical_emission), jnp.asarray(RNG.integers(0, 3, 6))),
    "hmm_sequences": Case(hmm_sequences, (data(3, 4), jnp.array([4, 2, 3]))),
    "regressions": Case(regressions, (data(6, 2), data(6))),
    "switch": Case(switch, data(5)),
    "student": Case(student, data(5), closed=False),
    "gammas": Case(gammas, jnp.exp(data(5)), closed=False),
    "with_priors": Case(with_priors, (data(5), jnp.asarray(RNG.poisson(3.0, 5)))),
    "masked": Case(masked, (data(5, 2), SEEN)),
    "half_observed": Case(half_observed, (data(5), SEEN[:, 0])),
    "weighted": Case(weighted, (data(5), jnp.array([1.0, 2.0, 0.5, 3.0, 1.0])), scaled=True),
    "covariance_matrix": Case(partial(covariances, guise="covariance_matrix"), data(10, 2)),
    "precision_matrix": Case(partial(covariances, guise="precision_matrix"), data(10, 2)),
    "scale_tril": Case(partial(covariances, guise="scale_tril"), data(10, 2)),
    "one_mean_two_scales": Case(one_mean_two_scales, data(6)),
    "offset_regression": Case(offset_regression, (data(6), data(6))),
    "counts": Case(
        counts,
        (
            jnp.asarray(RNG.integers(0, 8, 5)),
            jnp.asarray(RNG.multinomial(5, [0.2, 0.3, 0.5], 5)),
            jnp.asarray(RNG.integers(0, 2, 5)),
        ),
    ),
    "factorial_hmm": Case(factorial_hmm, data(4)),
    "emissions_that_are_mixtures": Case(
        emissions_that_are_mixtures, (data(4), jnp.array([0, 1, 1, 0]), jnp.array(1.3))
    ),
    "disguised": Case(disguised, data(4)),
    "one_step": Case(partial(hmm, emit=categorical_emission), jnp.array([2])),
    "neural": Case(neural, (data(6), data(6)), closed=False, solved=1e-10),  # four tanh of one number
}


VARIANTS = {  # of a kind that another case stands for
    "independent_pair",
    "latent_class_right",
    "latent_class_left",
    "precision_matrix",
    "scale_tril",
    "categorical_hmm",
    "disguised",
    "one_step",
}
KINDS = [name for name in CASES if name not in VARIANTS]  # one of each, for what costs seconds of compilation each
RISING = ["mixture", "general", "dependent_pair", "gaussian_hmm", "student", "with_priors", "weighted"]
RISING += ["one_mean_two_scales", "offset_regression", "counts", "emissions_that_are_mixtures"]


def arguments(case):
    return case.x if isinstance(case.x, tuple) else (case.x,)


class Brute(NamedTuple):
    """Every joint assignment and its log density, by NumPyro on the program as it stands."""

    assignments: dict[str, np.ndarray]  # site → (assignments, *shape)
    sizes: dict[str, int]
    log_density: np.ndarray


def brute_force(case, theta):
    """NumPyro's log density at every assignment of the discrete latents: the program itself, no enumeration."""
    args = arguments(case)
    program = explicit.get(case.program, case.program)
    with jax.numpy_rank_promotion("allow"):  # NumPyro's distributions broadcast freely
        return _brute_force(program, args, theta)


def _brute_force(program, args, theta):
    trace = handlers.trace(handlers.seed(handlers.substitute(program, data=theta), 0)).get_trace(*args)
    sites = {
        name: site
        for name, site in trace.items()
        if site["type"] == "sample" and not site["is_observed"] and site["fn"].is_discrete
    }
    sizes = {name: int(site["fn"].enumerate_support(expand=False).shape[0]) for name, site in sites.items()}
    shapes = {name: np.shape(site["value"]) for name, site in sites.items()}
    ranges = [range(sizes[name]) for name in sites for _ in range(int(np.prod(shapes[name])))]
    every = np.array(list(itertools.product(*ranges)), dtype=int)
    assignments, start = {}, 0
    for name, shape in shapes.items():
        count = int(np.prod(shape))
        assignments[name] = every[:, start : start + count].reshape(-1, *shape)
        start += count
    hidden = {name: site["value"] for name, site in trace.items() if name.endswith("_unobserved")}

    counted = handlers.block(handlers.substitute(program, data=hidden), hide=list(hidden))  # they integrate to one

    def at(values):
        return log_density(counted, args, {}, theta | values)[0]

    return Brute(assignments, sizes, np.asarray(jax.vmap(at)(assignments)))


def explicit_general(x):
    pi = numpyro.param("pi", jnp.array([0.4, 0.6]), constraint=simplex)
    rate = numpyro.param("rate", 0.7, constraint=positive)
    mu = numpyro.param("mu", 0.5)
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Categorical(pi))
        parts = jnp.stack([dist.Exponential(rate).log_prob(x), dist.LogNormal(mu, 0.5).log_prob(x)])
        numpyro.factor("x", parts[z, jnp.arange(len(x))])


explicit = {same_family: mixture, general: explicit_general}
