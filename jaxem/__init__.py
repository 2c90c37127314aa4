"""jaxem: expectation–maximisation for NumPyro. One free energy, certified; k-means is its limit as T → 0."""

from jaxem import bregman as bregman
from jaxem import families as families
from jaxem import inits as inits
from jaxem import limits as limits
from jaxem._arguments import arguments
from jaxem._batches import StreamError
from jaxem._certificates import Certificate, certify, e_step_residual
from jaxem._condition import Conditional, condition
from jaxem._devices import ProcessLost, use_all_cores
from jaxem._em import EMError, Path, best, check, em, em_batch, em_path, kmeans
from jaxem._free_energy import free_energy
from jaxem._gradient import gradient_m_step
from jaxem._kmedoids import KMedoids, kmedoids
from jaxem._loop import Fit, Status
from jaxem._mixture import Mixture
from jaxem._online import OnlineFit, em_online
from jaxem._posterior import decode, marginals
from jaxem._program import Program, from_numpyro
from jaxem._quantities import distortion, expected_log_joint, log_joint, log_likelihood, responsibilities, sample
from jaxem._rate import Rate, convergence_rate
from jaxem._stream import em_stream
from jaxem._version import __version__ as __version__

__all__ = [
    "Certificate",
    "Conditional",
    "EMError",
    "Fit",
    "KMedoids",
    "Mixture",
    "OnlineFit",
    "Path",
    "ProcessLost",
    "Program",
    "Rate",
    "Status",
    "StreamError",
    "arguments",
    "best",
    "bregman",
    "certify",
    "check",
    "condition",
    "convergence_rate",
    "decode",
    "distortion",
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
    "gradient_m_step",
    "inits",
    "kmeans",
    "kmedoids",
    "limits",
    "log_joint",
    "log_likelihood",
    "marginals",
    "responsibilities",
    "sample",
    "use_all_cores",
]
