"""Gaussian mixtures: z_n ~ Categorical(π), x_n | z_n = k ~ N(μ_k, Σ_k); the fourteen shapes of Σ_k of R's mclust.

    isotropic   Σ_k = σ² I          sigma ()          mclust's EII, the sources' model
    spherical   Σ_k = σ_k² I        sigma (K,)        VII
    diagonal    Σ_k = diag σ_k²     sigma (K, D)      VVI
    tied        Σ_k = Σ             Sigma (D, D)      EEE
    full        Σ_k                 Sigma (K, D, D)   VVV

mclust's names are names of the same. The other nine have the factors of Σ_k = λ_k D_k A_k D_kᵀ, equal for all k or not:

    EEI VEI EVI     Σ_k = λ_k A_k            volume () or (K,), squared units of x; shape (D,) or (K, D), of product 1
    EVE VVE EEV VEV Σ_k = λ_k D_k A_k D_kᵀ   and rotation (D, D) or (K, D, D), orthogonal
    VEE EVV         Σ_k = λ_k C_k            volume and correlation (D, D) or (K, D, D), of determinant 1

`ALL` is the tuple of the fourteen, in mclust's order.

They are two families, by scales and by covariances, and the ways to pool Σγ(x − μ_k)(x − μ_k)ᵀ.

Statistics are taken about the current means, never as raw moments: E[x²] − μ² loses every digit when the
data sit far from the origin or a cluster is tight, while differences keep theirs. Where an expanded form is
faster, one rule says when it may be used (`_accuracy.py`).
"""

from jaxem.families.gaussian import _covariances, _factors, _scales
from jaxem.families.gaussian._floor import with_floor
from jaxem.families.gaussian._missing import completed
from jaxem.families.gaussian._moments import squared_distances
from jaxem.families.gaussian._noise import with_noise
from jaxem.families.gaussian._prior import Prior, mclust_prior, with_prior

isotropic, spherical, diagonal, tied, full, EEI, VEI, EVI, VEE, EVE, VVE, EEV, VEV, EVV = (
    m.but(missing=completed)
    for m in (
        *(_scales.isotropic, _scales.spherical, _scales.diagonal, _covariances.tied, _covariances.full),
        *(_factors.EEI, _factors.VEI, _factors.EVI, _factors.VEE, _factors.EVE),
        *(_factors.VVE, _factors.EEV, _factors.VEV, _factors.EVV),
    )
)
EII, VII, VVI, EEE, VVV = isotropic, spherical, diagonal, tied, full  # by mclust's names
ALL = EII, VII, EEI, VEI, EVI, VVI, EEE, VEE, EVE, VVE, EEV, VEV, EVV, VVV

__all__ = [
    "ALL",
    "EEE",
    "EEI",
    "EEV",
    "EII",
    "EVE",
    "EVI",
    "EVV",
    "VEE",
    "VEI",
    "VEV",
    "VII",
    "VVE",
    "VVI",
    "VVV",
    "Prior",
    "diagonal",
    "full",
    "isotropic",
    "mclust_prior",
    "spherical",
    "squared_distances",
    "tied",
    "with_floor",
    "with_noise",
    "with_prior",
]


def __dir__() -> list[str]:
    return __all__
