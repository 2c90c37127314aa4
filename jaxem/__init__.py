"""jaxem: expectation–maximisation for NumPyro. One free energy, certified; k-means is its limit as T → 0."""

from jaxem import bregman as bregman
from jaxem import families as families
from jaxem import inits as inits
from jaxem import limits as limits
from jaxem._answers.certificates import Certificate, certify, e_step_residual
from jaxem._answers.condition import Conditional, condition
from jaxem._answers.gain import Gain, gain
from jaxem._answers.posterior import decode, marginals
from jaxem._answers.quantities import (
    distortion,
    expected_log_joint,
    log_joint,
    log_likelihood,
    responsibilities,
    sample,
)
from jaxem._answers.rate import Rate, convergence_rate
from jaxem._core.objective import free_energy
from jaxem._fit.balanced import BalancedFit, balanced_em
from jaxem._fit.batches import StreamError
from jaxem._fit.dpmeans import dpmeans
from jaxem._fit.em import EMError, Path, best, check, em, em_batch, em_path, kmeans
from jaxem._fit.gradient import gradient_m_step
from jaxem._fit.kmedoids import KMedoids, kmedoids
from jaxem._fit.loop import Fit, Status
from jaxem._fit.online import OnlineFit, em_online
from jaxem._fit.stream import em_stream
from jaxem._programs.arguments import arguments
from jaxem._programs.program import Program, from_numpyro
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
    "Gain",
    "Gap",
    "GlobalGap",
    "KMedoids",
    "Mixture",
    "OnlineFit",
    "Path",
    "ProcessLost",
    "Program",
    "Rate",
    "Status",
    "StreamError",
    "anneal",
    "arguments",
    "balanced_em",
    "best",
    "bregman",
    "certify",
    "check",
    "condition",
    "convergence_rate",
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
    "free_energy",
    "from_numpyro",
    "gain",
    "global_gap",
    "gradient_function",
    "gradient_m_step",
    "grow",
    "inits",
    "kmeans",
    "kmedoids",
    "limits",
    "log_joint",
    "log_likelihood",
    "marginals",
    "optimality_gap",
    "responsibilities",
    "sample",
    "use_all_cores",
]

for _name in __all__:  # what users see, pickle and read in a traceback is where they import it from
    if isinstance(vars()[_name], type):
        vars()[_name].__module__ = "jaxem"
del _name
