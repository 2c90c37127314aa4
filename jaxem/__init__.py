"""jaxem: expectation–maximisation for NumPyro. One free energy, certified; k-means is its limit as T → 0.

A model is a mixture of `jaxem.families`, like `gaussian.full`, or any NumPyro program, `jaxem.from_numpyro(program)`.

    fit        jaxem.fit(m, x, key, K)       the best of several starts;   jaxem.select(x, key)     which model, which K
    step by    jaxem.inits, m.init           where to start;               jaxem.em, em_batch, best, kmeans, check
    ask        jaxem.summary(m, fit, x)      the fit in words;             jaxem.predict, responsibilities, sample
    judge      jaxem.bic, aic, icl           smaller is better;            jaxem.certify(m, theta, x)   is it right?
    keep       jaxem.save(path, m, fit)      in one file;                  jaxem.load(path)

Keys come in as arguments, parameters are a dict `theta`, and everything runs inside `jax.jit` and `jax.vmap`. Set
`jax.config.update("jax_enable_x64", True)` before anything else for 16 digits instead of 8.
"""

from jaxem import bregman as bregman
from jaxem import families as families
from jaxem import inits as inits
from jaxem import limits as limits
from jaxem import plot as plot
from jaxem._answers.certificates import Certificate, certify, e_step_residual
from jaxem._answers.condition import Conditional, condition, impute
from jaxem._answers.covariances import covariances
from jaxem._answers.criteria import aic, bic, icl, num_parameters
from jaxem._answers.datatree import to_datatree
from jaxem._answers.files import load, save
from jaxem._answers.filter import filter
from jaxem._answers.forecast import Forecast, forecast
from jaxem._answers.gain import Gain, gain
from jaxem._answers.latents import recover, sample_latents
from jaxem._answers.likelihood_ratio import LikelihoodRatioTest, likelihood_ratio_test
from jaxem._answers.posterior import decode, marginals
from jaxem._answers.prediction import Prediction, predict
from jaxem._answers.quantities import (
    distortion,
    expected_log_joint,
    log_joint,
    log_likelihood,
    responsibilities,
    sample,
)
from jaxem._answers.rate import Rate, convergence_rate
from jaxem._answers.selection import Selection, select
from jaxem._answers.summary import Summary, summary
from jaxem._answers.uncertainty import Uncertainty, standard_errors
from jaxem._core.objective import free_energy
from jaxem._fit.acceleration import anderson, squarem
from jaxem._fit.balanced import BalancedFit, balanced_em
from jaxem._fit.batches import StreamError
from jaxem._fit.bootstrap import bootstrap
from jaxem._fit.dpmeans import dpmeans
from jaxem._fit.em import em, em_batch, kmeans
from jaxem._fit.fit import fit
from jaxem._fit.gradient import gradient_m_step
from jaxem._fit.kmedoids import KMedoids, kmedoids
from jaxem._fit.loop import Fit, Status
from jaxem._fit.nats_left import nats_left
from jaxem._fit.online import OnlineFit, em_online
from jaxem._fit.outcome import EMError, best, check
from jaxem._fit.path import Path, em_path
from jaxem._fit.stream import em_stream
from jaxem._programs.arguments import arguments
from jaxem._programs.program import Program, from_numpyro
from jaxem._programs.ragged import ragged
from jaxem._rows.devices import ProcessLost, use_all_cores
from jaxem._version import __version__ as __version__
from jaxem.families._mixture import Mixture
from jaxem.limits._anneal import Branches, anneal
from jaxem.limits._grow import grow
from jaxem.limits._lindsay import GlobalGap, global_gap, gradient_function
from jaxem.limits._relaxation import Gap, optimality_gap

__all__ = [
    "BalancedFit",
    "Branches",
    "Certificate",
    "Conditional",
    "EMError",
    "Fit",
    "Forecast",
    "Gain",
    "Gap",
    "GlobalGap",
    "KMedoids",
    "LikelihoodRatioTest",
    "Mixture",
    "OnlineFit",
    "Path",
    "Prediction",
    "ProcessLost",
    "Program",
    "Rate",
    "Selection",
    "Status",
    "StreamError",
    "Summary",
    "Uncertainty",
    "aic",
    "anderson",
    "anneal",
    "arguments",
    "balanced_em",
    "best",
    "bic",
    "bootstrap",
    "bregman",
    "certify",
    "check",
    "condition",
    "convergence_rate",
    "covariances",
    "decode",
    "distortion",
    "dpmeans",
    "e_step_residual",
    "em",
    "em_batch",
    "em_online",
    "em_path",
    "em_stream",
    "expected_log_joint",
    "families",
    "filter",
    "fit",
    "forecast",
    "free_energy",
    "from_numpyro",
    "gain",
    "global_gap",
    "gradient_function",
    "gradient_m_step",
    "grow",
    "icl",
    "impute",
    "inits",
    "kmeans",
    "kmedoids",
    "likelihood_ratio_test",
    "limits",
    "load",
    "log_joint",
    "log_likelihood",
    "marginals",
    "nats_left",
    "num_parameters",
    "optimality_gap",
    "plot",
    "predict",
    "ragged",
    "recover",
    "responsibilities",
    "sample",
    "sample_latents",
    "save",
    "select",
    "squarem",
    "standard_errors",
    "summary",
    "to_datatree",
    "use_all_cores",
]

for _name in __all__:  # what users see, pickle and read in a traceback is where they import it from
    if isinstance(vars()[_name], type):
        vars()[_name].__module__ = "jaxem"
del _name
