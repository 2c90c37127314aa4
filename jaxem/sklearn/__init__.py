"""scikit-learn's estimators, fitted by jaxem: `pip install "jaxem[sklearn]"`, then `import jaxem.sklearn`.

They are thin: parameters in, rows checked by scikit-learn, starts as lanes of `jaxem.em_batch`, the best converged one
out. What was fitted is also there as jaxem has it: `model_` and `theta_` go into every function of the library,
`jaxem.certify(e.model_, e.theta_, X)` for one.

float64 stays float64, whether or not JAX's x64 is on. The fit is a function of the rows as a set: their order does not
matter, a row of weight 2 is the row twice, and one of weight 0 is not there.
"""

try:
    import sklearn as _sklearn
except ImportError as error:
    raise ImportError('jaxem.sklearn needs scikit-learn: pip install "jaxem[sklearn]"') from error

from jaxem.sklearn._counts import BernoulliMixture, CategoricalMixture, PoissonMixture
from jaxem.sklearn._gaussian import GaussianMixture
from jaxem.sklearn._kmeans import KMeans

__all__ = ["BernoulliMixture", "CategoricalMixture", "GaussianMixture", "KMeans", "PoissonMixture"]

for _name in __all__:  # what users see, pickle and read in a traceback is where they import it from
    vars()[_name].__module__ = "jaxem.sklearn"
del _name, _sklearn
