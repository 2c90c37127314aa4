"""A fit in words and numbers, as one would tell a colleague."""

from typing import Any, NamedTuple

import numpy as np
from jax.typing import ArrayLike

from jaxem._answers.criteria import criterion, degrees_of_freedom, terms_at
from jaxem._answers.posterior import possible
from jaxem._answers.prediction import predict
from jaxem._core.checks import blame_x, enter
from jaxem._core.columns import columns_of
from jaxem._core.model import Model
from jaxem._core.words import entries, number, plain, readable, table
from jaxem._fit.loop import Fit
from jaxem._programs.program import Program

MOST_COLUMNS = 8  # of a table of components


class Summary(NamedTuple):
    """What `summary` found; its repr is the text."""

    m: Model
    fit: Fit
    num_rows: float  # N, the sum of their weights
    num_parameters: int  # df
    log_likelihood: float  # L, nats
    aic: float
    bic: float
    icl: float
    columns: tuple[str, ...]  # names of x's columns, or their numbers; of a program ()
    shares: dict[str, np.ndarray]  # of each latent: the mean of its posterior over its places
    sizes: dict[str, np.ndarray]  # rows whose most probable value it is

    def __repr__(self) -> str:
        if not readable(self.fit):
            return plain(self)
        ended = repr(self.fit).splitlines()
        columns = f" and {len(self.columns)} column(s)" if self.columns else ""
        lines = [f"{self.m!r} on {number(self.num_rows)} rows{columns}"]
        lines += [line for line in ended if not line.startswith("  ") or line.startswith("  of ")]
        facts = [
            ["log-likelihood", "parameters", "AIC", "BIC", "ICL"],
            [f"{self.log_likelihood:.4f}", str(self.num_parameters)]
            + [f"{value:.4f}" for value in (self.aic, self.bic, self.icl)],
        ]
        lines += ["", *table(facts, left=0)]
        theta = dict(self.fit.theta)
        if isinstance(self.m, Program):
            for name, share in self.shares.items():
                rows = [[name, "share", "places"]]
                rows += [
                    [str(k), f"{s:.4f}", str(n)] for k, (s, n) in enumerate(zip(share, self.sizes[name], strict=True))
                ]
                lines += ["", *table(rows)]
        else:
            lines += ["", *self.components(theta)]
        return "\n".join(lines + (["", *entries(theta)] if theta else []))

    def components(self, theta: dict[str, Any]) -> list[str]:
        """A line for each component: what has one value, or one for each of a few columns, is taken out of θ."""
        share, size = self.shares["z"], self.sizes["z"]
        theta.pop("pi", None)
        head = ["component", "share", "rows"]
        cells = [[str(k), f"{share[k]:.4f}", str(size[k])] for k in range(len(share))]
        shapes = dict(getattr(self.m, "shapes", ()))
        if shapes.get("pi") == "K+1":
            cells[-1][0] = "noise"
        for name in [name for name in theta if shapes.get(name, "").startswith("K")]:
            value = np.asarray(theta[name])
            if value.ndim == 1:
                head.append(name)
                value = value[:, None]
            elif value.ndim == 2 and value.shape[1] == len(self.columns) <= MOST_COLUMNS:
                head += [f"{name}[{column}]" for column in self.columns]
            else:
                continue
            theta.pop(name)
            for line, row in zip(cells[: len(value)], value, strict=True):  # noise, the last, has none
                line += [number(v, 5) for v in row]
        return table([head, *([*line, *[""] * (len(head) - len(line))] for line in cells)])


def summary(m: Model, fit: Any, x: Any, *, weights: ArrayLike | None = None) -> Summary:
    """A fit in words and numbers: how it ended, its likelihood and criteria, and what each component is.

    Args:
        m: the model.
        fit: its fit, of one start.
        x: the data that were fitted.
        weights: w (N,) ≥ 0, as they were in the fit.

    Returns:
        A `Summary`, whose repr is a text, and whose fields are the numbers in it.

    Raises:
        ValueError: for a fit with lanes, and for what `em` refuses.

    >>> import jax.numpy as jnp, jaxem
    >>> from jaxem.families import gaussian
    >>> x = jnp.array([-1.2, -1.0, -0.8, 0.9, 1.1])
    >>> theta = {"pi": jnp.array([0.5, 0.5]), "mu": jnp.array([[-0.5], [0.5]]), "sigma": 1.0}
    >>> m = gaussian.isotropic
    >>> jaxem.summary(m, jaxem.em(m, theta, x), x)                                        # doctest: +ELLIPSIS
    gaussian.isotropic on 5 rows and 1 column(s)
    Fit: CONVERGED after ... steps at F = -0.6796... nats, last gain ...
    <BLANKLINE>
    log-likelihood  parameters     AIC     BIC     ICL
           -0.6797           4  9.3594  7.7971  7.7971
    <BLANKLINE>
    component   share  rows  mu[0]
    0          0.6000     3     -1
    1          0.4000     2      1
    <BLANKLINE>
    sigma  ()  0.1414
    """
    if not isinstance(fit, Fit) or np.ndim(fit.status) or not readable(fit):
        got = f"{np.size(fit.status)} lanes" if isinstance(fit, Fit) else type(fit).__name__
        raise ValueError(f"fit: must be the Fit of one start, concrete, got {got}; take jaxem.best(fits)")
    theta, data = enter(m, fit.theta, x, weights)
    df, terms = degrees_of_freedom(m, theta, data), terms_at(m, theta, data)
    blame_x(data.x, terms.log_likelihood)
    if isinstance(m, Program):
        found = possible("summary", m, theta, data)
        tables = {name: np.asarray(p).reshape(-1, np.shape(p)[-1]) for name, p in found.items()}
        shares = {name: p.mean(axis=0) for name, p in tables.items()}
        sizes = {name: np.bincount(p.argmax(axis=1), minlength=p.shape[1]) for name, p in tables.items()}
        columns: tuple[str, ...] = ()
    else:
        labels = np.asarray(predict(m, theta, data.x).labels)
        shares = {"z": np.asarray(theta["pi"])}
        sizes = {"z": np.bincount(labels, minlength=len(shares["z"]))}
        columns = columns_of(x) or tuple(map(str, range(data.x.shape[1])))
    aic, bic, icl = (float(criterion(name, terms, df)) for name in ("aic", "bic", "icl"))
    N, L = float(terms.num_rows), float(terms.log_likelihood)
    return Summary(m, fit, N, df, L, aic, bic, icl, columns, shares, sizes)
