"""A hidden Markov model of three states, and every path of it in plain NumPy."""

import itertools

import numpy as np
import numpyro
from numpyro import distributions as dist
from numpyro.contrib.control_flow import scan
from scipy.stats import norm

import jaxem

from cases import cast

A = np.array([[0.8, 0.15, 0.05], [0.2, 0.7, 0.1], [0.3, 0.3, 0.4]])
START = np.array([0.5, 0.3, 0.2])
MU = np.array([-1.5, 0.0, 2.0])


def hidden(y):
    mu = numpyro.param("mu", cast(MU))

    def step(before, y):
        z = numpyro.sample("z", dist.Categorical(cast(np.vstack([A, START]))[before]))
        numpyro.sample("y", dist.Normal(mu[z], 0.8), obs=y)
        return z, None

    scan(step, 3, y)


M, THETA = jaxem.from_numpyro(hidden), {"mu": MU}
Y = cast(np.random.default_rng(5).normal(size=6) * 1.5)


def every_path(y):
    """(paths, log p(path, y)) of `hidden`, in plain NumPy."""
    paths = np.array(list(itertools.product(range(3), repeat=len(y))))
    log_p = np.log(START)[paths[:, 0]] + np.log(A)[paths[:, :-1], paths[:, 1:]].sum(1)
    return paths, log_p + norm.logpdf(np.asarray(y, float), MU[paths], 0.8).sum(1)


def last_given(paths, log_p, K=3):
    p = np.exp(log_p - log_p.max())
    return np.bincount(paths[:, -1], p, minlength=K) / p.sum()
