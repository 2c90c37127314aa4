"""The families: each a NumPyro program and the equations that make its EM exact and fast."""

from jaxem.families import bernoulli as bernoulli
from jaxem.families import categorical as categorical
from jaxem.families import exponential as exponential
from jaxem.families import factor_analysers as factor_analysers
from jaxem.families import gamma as gamma
from jaxem.families import gaussian as gaussian
from jaxem.families import negative_binomial as negative_binomial
from jaxem.families import poisson as poisson
from jaxem.families import student_t as student_t
from jaxem.families import von_mises_fisher as von_mises_fisher
from jaxem.families._parts import Extras as Extras
from jaxem.families._parts import Numerics as Numerics

__all__ = [
    "Extras",
    "Numerics",
    "bernoulli",
    "categorical",
    "exponential",
    "factor_analysers",
    "gamma",
    "gaussian",
    "negative_binomial",
    "poisson",
    "student_t",
    "von_mises_fisher",
]
