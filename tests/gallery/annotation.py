"""Who labelled it, and how well: models of annotators, and other models of answers."""

import jax
import jax.numpy as jnp
import numpyro
from numpyro import distributions as dist
from numpyro import handlers
from numpyro.infer.reparam import LocScaleReparam

from gallery.registry import J, draws, entry, unit_interval, weights

ANNOTATORS = J([0, 1, 2, 2])  # position → annotator: the last of three annotates twice
LABELS = J(draws(3).integers(0, 2, (4, 4)))  # items × positions
EXAMPLE = "NumPyro example annotation"


@entry(LABELS, source=EXAMPLE, closed="zeta pi", single=True)
def multinomial_annotation(labels):
    """All annotators alike, with flat priors: a class may see no label at all."""
    with numpyro.plate("class", 2):
        zeta = numpyro.sample("zeta", dist.Dirichlet(jnp.ones(3)))
    pi = numpyro.sample("pi", dist.Dirichlet(jnp.ones(2)))
    with numpyro.plate("item", len(labels), dim=-2):
        c = numpyro.sample("c", dist.Categorical(pi))
        with numpyro.plate("position", labels.shape[1]):
            numpyro.sample("y", dist.Categorical(zeta[c]), obs=labels)


@entry(ANNOTATORS, LABELS, source=EXAMPLE, closed="beta pi", single=True)
def dawid_skene(positions, labels):
    """A confusion matrix for each annotator (Dawid & Skene 1979), flat priors."""
    with numpyro.plate("annotator", 3, dim=-2), numpyro.plate("class", 2):
        beta = numpyro.sample("beta", dist.Dirichlet(jnp.ones(2)))
    pi = numpyro.sample("pi", dist.Dirichlet(jnp.ones(2)))
    with numpyro.plate("item", len(labels), dim=-2):
        c = numpyro.sample("c", dist.Categorical(pi))
        with numpyro.plate("position", len(positions)):
            numpyro.sample("y", dist.Categorical(beta[positions, c, :]), obs=labels)


def mace(concentration):
    def program(positions, labels):
        with numpyro.plate("annotator", 3):
            epsilon = numpyro.sample("epsilon", dist.Dirichlet(jnp.full(2, 10.0)))
            theta = numpyro.sample("theta", dist.Beta(concentration, concentration))
        with numpyro.plate("item", len(labels), dim=-2):
            c = numpyro.sample("c", dist.DiscreteUniform(0, 1))
            with numpyro.plate("position", len(positions)):
                s = numpyro.sample("s", dist.Bernoulli(1 - theta[positions]))
                honest = jax.nn.one_hot(c, 2)
                probs = jnp.where(s[..., None] == 0, honest, epsilon[positions])
                numpyro.sample("y", dist.Categorical(probs), obs=labels)

    program.__doc__ = (
        f"An annotator either knows or guesses (MACE), Beta({concentration:g}, {concentration:g}) on which."
    )
    return program


entry(ANNOTATORS[:2], LABELS[:, :2], source=EXAMPLE, name="mace")(mace(2.0))
entry(ANNOTATORS[:2], LABELS[:, :2], source=EXAMPLE, ends="MAX_STEPS NONFINITE", name="mace_unbounded")(mace(0.5))


@entry(ANNOTATORS, LABELS, source=EXAMPLE, closed="pi", climbs="zeta omega")
def hierarchical_dawid_skene(positions, labels):
    """Confusion matrices drawn around those of a population, decentered."""
    with numpyro.plate("class", 2):
        zeta = numpyro.sample("zeta", dist.Normal(0.0, 1.0).expand([1]).to_event(1))
        omega = numpyro.sample("omega", dist.HalfNormal(1.0).expand([1]).to_event(1))
    decentered = handlers.reparam(config={"beta": LocScaleReparam(0)})
    with numpyro.plate("annotator", 3, dim=-2), numpyro.plate("class", 2), decentered:
        beta = numpyro.sample("beta", dist.Normal(zeta, omega).to_event(1))
    logits = jnp.concatenate([beta, jnp.zeros_like(beta[..., :1])], axis=-1)
    pi = numpyro.sample("pi", dist.Dirichlet(jnp.full(2, 2.0)))
    with numpyro.plate("item", len(labels), dim=-2):
        c = numpyro.sample("c", dist.Categorical(pi))
        with numpyro.plate("position", len(positions)):
            numpyro.sample("y", dist.Categorical(logits=logits[positions, c, :]), obs=labels)


@entry(LABELS, source=EXAMPLE)
def item_difficulty(labels):
    """A difficulty of each item, a value for all of its labels, whose prior depends on the item's class."""
    eta = numpyro.sample("eta", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    pi = numpyro.sample("pi", dist.Dirichlet(jnp.ones(2)))
    with numpyro.plate("item", len(labels), dim=-2):
        c = numpyro.sample("c", dist.Categorical(pi))
        theta = numpyro.sample("theta", dist.Normal(eta[c], 1.0))
        with numpyro.plate("position", labels.shape[1]):
            numpyro.sample("y", dist.Bernoulli(logits=theta), obs=labels)


@entry(ANNOTATORS, LABELS, source=EXAMPLE)
def random_effects_of_items(positions, labels):
    """Logistic random effects: annotators' ability, and an effect of each item, a value for all of its labels."""
    with numpyro.plate("annotator", 3):
        zeta = numpyro.sample("zeta", dist.Normal(0.0, 1.0))
    pi = numpyro.sample("pi", dist.Dirichlet(jnp.ones(2)))
    with numpyro.plate("item", len(labels), dim=-2):
        c = numpyro.sample("c", dist.Categorical(pi))
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
        with numpyro.plate("position", len(positions)):
            numpyro.sample("y", dist.Bernoulli(logits=zeta[positions] * (2.0 * c - 1.0) - theta), obs=labels)


@entry(LABELS[:3, :3], source="classic: item response with guessing")
def guessing(answers):
    """Who does not know guesses: abilities and difficulties as parameters."""
    ability = numpyro.sample("ability", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    difficulty = numpyro.sample("difficulty", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    guess = numpyro.param("guess", J(0.3), constraint=unit_interval)
    with numpyro.plate("persons", 3, dim=-2), numpyro.plate("items", 3):
        knows = numpyro.sample("knows", dist.Bernoulli(logits=ability[:, None] - difficulty))
        right = jnp.where(knows == 1, 0.95, guess)
        numpyro.sample("y", dist.Bernoulli(right), obs=answers)


@entry(LABELS[:3, :3], source="classic: item response with guessing")
def ability_of_each_person(answers):
    """Guessing, with abilities drawn in the plate of the persons: a value for a group of many answers."""
    difficulty = numpyro.sample("difficulty", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with numpyro.plate("persons", 3, dim=-2):
        ability = numpyro.sample("ability", dist.Normal(0.0, 1.0))
        with numpyro.plate("items", 3):
            knows = numpyro.sample("knows", dist.Bernoulli(logits=ability - difficulty))
            numpyro.sample("y", dist.Bernoulli(jnp.where(knows == 1, 0.95, 0.3)), obs=answers)


@entry(J(draws(4).integers(0, 3, (2, 4))), source="NumPyro stein example LDA; Pyro example lda", closed="topics")
def topics(words):
    """Latent Dirichlet allocation: each document has topic weights of its own, drawn in its plate."""
    topic = numpyro.sample("topics", dist.Dirichlet(jnp.full(3, 2.0)).expand([2]).to_event(1))
    with numpyro.plate("documents", 2, dim=-2):
        theta = numpyro.sample("theta", dist.Dirichlet(jnp.full(2, 2.0)))
        with numpyro.plate("words", 4):
            z = numpyro.sample("z", dist.Categorical(theta))
            numpyro.sample("w", dist.Categorical(topic[z]), obs=words)


@entry(J(draws(4).integers(0, 3, (2, 4))), source="NumPyro stein example LDA, rewritten", closed="topics theta")
def topics_outside(words):
    """Topics with the documents' weights outside of their plate."""
    topic = numpyro.sample("topics", dist.Dirichlet(jnp.full(3, 2.0)).expand([2]).to_event(1))
    theta = numpyro.sample("theta", dist.Dirichlet(jnp.full(2, 2.0)).expand([2]).to_event(1))
    with numpyro.plate("documents", 2, dim=-2) as d, numpyro.plate("words", 4):
        z = numpyro.sample("z", dist.Categorical(theta[d[:, None]]))
        numpyro.sample("w", dist.Categorical(topic[z]), obs=words)


@entry(J([[1, 0, 1], [0, 0, 1], [1, 1, 1]]), source="numpyro test_enum_elbo: plates within plates", closed="p q")
def crossed_plates(answers):
    """Rows and columns have a latent each, and every cell depends on both."""
    p = numpyro.sample("p", dist.Beta(2.0, 2.0))
    q = numpyro.param("q", J([[0.2, 0.6], [0.7, 0.4]]), constraint=unit_interval)
    with numpyro.plate("rows", 3, dim=-2):
        z = numpyro.sample("z", dist.Bernoulli(p))
        with numpyro.plate("cells", 3):
            w = numpyro.sample("w", dist.Bernoulli(0.3))
            numpyro.sample("y", dist.Bernoulli(q[z, w]), obs=answers)


@entry(J([2.0, 3.0]), J([[1, 0], [1, 1]]), source="classic: pupils within schools", closed="pi mu")
def pupils_within_schools(scores, passed):
    """A latent for each school, and one for each pupil that depends on it."""
    pi = numpyro.param("pi", J([0.4, 0.7]), constraint=unit_interval)
    mu = numpyro.param("mu", J([1.0, 3.0]))
    with numpyro.plate("schools", 2, dim=-2):
        s = numpyro.sample("s", dist.Bernoulli(0.5))
        numpyro.sample("score", dist.Normal(mu[s], 1.0), obs=scores[:, None])
        with numpyro.plate("pupils", 2):
            z = numpyro.sample("z", dist.Bernoulli(pi[s]))
            numpyro.sample("y", dist.Bernoulli(0.2 + 0.6 * z), obs=passed)


ROWS = J([-2.1, -1.7, 0.4, 1.9, 2.6])


def semi_supervised(names):
    def program(x, labels, known):
        pi, mu = weights("pi", 0.4, 0.6), numpyro.param("mu", J([-1.0, 1.0]))
        with numpyro.plate("known", len(labels)):
            numpyro.sample("labels", dist.Categorical(pi), obs=labels)
            numpyro.sample(names[0], dist.Normal(mu[labels], 1.0), obs=known)
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", dist.Categorical(pi))
            numpyro.sample(names[1], dist.Normal(mu[z], 1.0), obs=x)

    program.__doc__ = f"Labelled rows beside unlabelled ones, their sites {names[0]} and {names[1]}."
    return program


LABELLED = (J([-3.0, -2.9, 4.0, 3.9]), J([0, 1]), J([-1.0, 1.0]))
SEMI = "Pyro example ss-vae, without its network"
entry(*LABELLED, source=SEMI, closed="pi mu", name="semi_supervised")(semi_supervised(("labelled", "unlabelled")))
entry(*LABELLED, source=SEMI, closed="pi mu", name="sites_named_observed_and_unobserved")(
    semi_supervised(("x_observed", "x_unobserved"))
)


@entry(
    ROWS,
    J([0, 0, 0, 1, 0]),
    J([True, False, False, True, False]),
    source="forum: labels by obs_mask",
    closed="pi mu",
)
def labels_by_obs_mask(x, labels, known):
    """The label itself is partly observed: its other half is a latent of the rows without one."""
    pi, mu = weights("pi", 0.4, 0.6), numpyro.param("mu", J([-1.0, 1.0]))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Categorical(pi), obs=labels, obs_mask=known, infer={"enumerate": "parallel"})
        numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)
