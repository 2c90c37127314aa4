"""C11 for chains: EM, hard EM, k-means and segmental k-means from one start, iterate by iterate."""

from typing import Any, NamedTuple

import _hidden_markov as hmm
import numpy as np

import jaxem
from jaxem import limits
from jaxem.limits import ROUNDING, UNDERFLOW, Bound

WARM = 1.0  # the σ of the sweep over T
NUM_STEPS = 64  # length of the paths that are compared; hard EM stops well before
EPS = ROUNDING * float(np.finfo(float).eps)


class Walk(NamedTuple):
    """From one start: the largest differences between iterates, and where hard EM ends."""

    theta: hmm.Theta  # hard EM's end at σ = WARM
    lloyd: list[Bound]  # at the last σ: EM and hard EM against k-means
    segmental: Bound  # at σ = WARM: hard EM against segmental k-means
    cold: Bound  # there, at the least T: EM against hard EM
    coldest: float
    falls: list[Bound]  # of F in any half-step, at T = 1 and T = 0


def walked(x: np.ndarray, small: hmm.Theta, warm: hmm.Theta) -> Walk:
    """C11 for chains: iterate by iterate."""

    def path(theta: hmm.Theta, temperature: float) -> jaxem.Path:
        return jaxem.em_path(hmm.M, theta, x, num_steps=NUM_STEPS, temperature=temperature)

    def apart(a: jaxem.Path, mu: Any) -> Bound:
        """‖μ − μ'‖ over the iterates: γ is one-hot, so the means differ by the rounding of their sums."""
        return Bound(np.max(np.abs(a.theta["mu"] - mu)), EPS * np.abs(x).max())

    kmeans, hard = hmm.lloyd(x, np.asarray(small["mu"]), NUM_STEPS), path(warm, 0.0)
    segmental = hmm.segmental_kmeans(x, warm, NUM_STEPS)
    met = np.unique(np.concatenate([np.asarray(warm["mu"])[None], segmental[:-1]]), axis=0)
    leads = [float(limits.lead(hmm.M, warm | {"mu": mu}, x).lead) for mu in met]
    # T at which s_T underflows; log(1/P − 1) ≤ N log K, the number of paths
    coldest = min(lead / (UNDERFLOW["float64"] + lead + len(x) * np.log(hmm.NUM_STATES)) for lead in leads)
    return Walk(
        warm | {"mu": hard.theta["mu"][-1]},
        [apart(path(small, T), kmeans) for T in (1.0, 0.0)],
        apart(hard, segmental),
        apart(path(warm, coldest), hard.theta["mu"]),
        coldest,
        [fall(path(warm, 1.0)), fall(hard)],
    )


def fall(path: jaxem.Path) -> Bound:
    """C2: the largest fall of F in any half-step."""
    trace = np.stack([path.after_e, path.after_m], axis=1).ravel()
    return Bound(np.max(trace[:-1] - trace[1:]), EPS * np.abs(trace).max())
