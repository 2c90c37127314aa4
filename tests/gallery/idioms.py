"""Ways to write and to call a program: what a user's habit does to it must not matter."""

import dataclasses
import types
from functools import partial

import numpyro
from numpyro import distributions as dist

from gallery.registry import J, entry, weights

X = J([-2.1, -1.7, 0.4, 1.9])
DOCS = "NumPyro docs' idiom"


def two_means():
    return numpyro.param("mu", J([-1.0, 1.0]))


def rows(mu, x, pi=0.4):
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(pi))
        numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)


# ---- indexing


@entry(X, source=DOCS, closed="mu")
def data_by_plate_index(x):
    """`with plate as i: obs=x[i]`."""
    mu = two_means()
    with numpyro.plate("rows", len(x)) as i:
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x[i])


@entry(X, J([0.5, 2.0]), source=DOCS, closed="pi")
def table_by_latent(x, table):
    """An argument of the program is indexed by the latent."""
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Categorical(weights("pi", 2)))
        numpyro.sample("x", dist.Normal(0.0, table[z]), obs=x)


@entry(X, source=DOCS, closed="mu pi")
def argument_updated_in_place(x):
    """`x.at[…].set(…)` on an argument."""
    mu = two_means()
    x = x.at[0].set(0.0)
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Categorical(weights("pi", 2)))
        numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)


# ---- arguments


@entry({"x": X, "sizes": [2, 3]}, source="dict arguments", closed="mu")
def dictionary(data):
    """Arguments in a dictionary, with lists in it."""
    rows(numpyro.param("mu", J([-1.0] * (data["sizes"][0] - 1) + [1.0])), data["x"])


@entry(X, [0.4, 1.5], source="lists as arguments", closed="mu")
def list_of_floats(x, settings):
    """A list of floats."""
    mu = two_means()
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(settings[0]))
        numpyro.sample("x", dist.Normal(mu[z], settings[1]), obs=x)


@entry(X, types.SimpleNamespace(scale=1.5), source="NumPyro's examples: args", closed="mu")
def namespace(x, args):
    """The parsed arguments of a script, passed on as they are."""
    mu = two_means()
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("x", dist.Normal(mu[z], args.scale), obs=x)


@dataclasses.dataclass(frozen=True)
class Settings:
    scale: float = 1.5


@entry(X, Settings(), source="dataclass arguments", closed="mu")
def settings_of_a_dataclass(x, settings):
    """Settings in a dataclass."""
    namespace(x, settings)


@entry(X, "wide", source="string arguments", closed="mu")
def chosen_by_a_string(x, kind):
    """A string that chooses the scale."""
    namespace(x, Settings({"wide": 1.5, "narrow": 0.5}[kind]))


# ---- callables


def scaled(scale, x):
    """A program bound by functools.partial."""
    namespace(x, Settings(scale))


bound = partial(scaled, 1.5)
bound.__doc__ = scaled.__doc__
entry(X, source="callables", closed="mu", name="partial")(bound)


def with_keyword(x, *, scale=None):
    """A keyword argument bound by functools.partial."""
    namespace(x, Settings(scale))


keyword = partial(with_keyword, scale=1.5)
keyword.__doc__ = with_keyword.__doc__
entry(X, source="callables", closed="mu", name="keyword_argument")(keyword)


class Model:
    """A program that is an object."""

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, x):
        self.method(x)

    def method(self, x):
        """A program that is a bound method."""
        namespace(x, Settings(self.scale))


entry(X, source="callables", closed="mu", name="callable_object")(Model(1.5))
entry(X, source="callables", closed="mu", name="bound_method")(Model(1.5).method)
