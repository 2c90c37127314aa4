"""Programs of from_numpyro: an iteration against the hand-written family, and an HMM's E-step against dynamax.

    python experiments/benchmarks/programs.py [--seed S] [--out DIR] [--quick]

The same data, start and number of iterations. dynamax (Linderman et al. 2025) is given the table of log-likelihoods to
make and returns marginals and the sum of pairwise ones, which is what an E-step is. First call: all that happens before
the second, the search for closed forms and the compilation. All on one JAX device, without `use_all_cores`: what a form
of the model costs is the question here.
"""

import sys
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from _timing import finish, goal, measure, parser


def mixtures(quick: bool, seed: int, num_rows: int = 100_000) -> list[dict[str, Any]]:
    """D = 2, K = 3, float32: spherical and full covariances, family against program."""
    import jax
    import jax.numpy as jnp
    import numpyro
    from numpyro import distributions as dist
    from numpyro.distributions import constraints

    import jaxem
    from jaxem.families import gaussian

    num_rows, num_features, num_components = (2_000 if quick else num_rows), 2, 3
    steps, repeats = (2, 1) if quick else (20, 7)
    rng = np.random.default_rng(seed)
    centres = 2 * rng.normal(size=(num_components, num_features))
    x = jnp.asarray(centres[rng.integers(num_components, size=num_rows)] + rng.normal(size=(num_rows, 2)), jnp.float32)

    def program(x: Any, covariance: str) -> None:
        pi = numpyro.param("pi", jnp.full(num_components, 1 / num_components), constraint=constraints.simplex)
        mu = numpyro.param("mu", jnp.asarray(centres / 2))
        if covariance == "spherical":
            scale = numpyro.param("sigma", jnp.ones(num_components), constraint=constraints.positive)
        else:
            start = jnp.tile(jnp.eye(num_features), (num_components, 1, 1))
            scale = numpyro.param("Sigma", start, constraint=constraints.positive_definite)
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", dist.Categorical(pi))
            if covariance == "spherical":
                law = dist.Normal(mu[z], scale[z][..., None]).to_event(1)
            else:
                law = dist.MultivariateNormal(mu[z], covariance_matrix=scale[z])
            numpyro.sample("x", law, obs=x)

    found = []
    for covariance in ("spherical", "full"):
        m = jaxem.from_numpyro(partial(program, covariance=covariance))
        theta = m.init(jax.random.key(0), x)
        rows, medians = [], []
        for label, model in (("family", getattr(gaussian, covariance)), ("from_numpyro", m)):
            run = partial(jaxem.em, model, theta, x, tol=0.0, max_steps=steps)
            timing = measure(run, repeats=repeats)
            count = int(timing.value.num_steps)
            rows.append(
                timing.as_row(1 / count)
                | {"program": label, "iterations": count, "objective": float(timing.value.free_energy)}
            )
            medians.append(timing.median / count)
        setting = {"N": num_rows, "D": 2, "K": 3, "precision": 32, "start": "half-way to the true centres"}
        found.append(
            {
                "name": f"program_{covariance}",
                "statement": f"an EM iteration of a {covariance} mixture written as a NumPyro program",
                "setting": setting,
                "rows": rows,
                "goals": [goal("program / family", medians[1] / medians[0], 2.0, at_least=False)],
            }
        )
    return found


def hidden_markov(quick: bool, seed: int) -> list[dict[str, Any]]:
    """T = 10,000, K = 16 Gaussian states, float64: one E-step, from parameters to marginals."""
    import jax
    import jax.numpy as jnp
    import numpyro
    from numpyro import distributions as dist
    from numpyro.contrib.control_flow import scan
    from numpyro.distributions import constraints

    import jaxem
    from jaxem._core.checks import enter as prepare

    length, states, repeats = (200, 4, 1) if quick else (10_000, 16, 11)
    rng = np.random.default_rng(seed)
    transitions, means = rng.dirichlet(np.ones(states), states), np.linspace(-4, 4, states)
    z = [0]
    for _ in range(length - 1):
        z.append(int(rng.choice(states, p=transitions[z[-1]])))
    y = jnp.asarray(means[z] + 0.7 * rng.normal(size=length))

    def program(y: Any) -> None:
        pi = numpyro.param("pi", jnp.full(states, 1 / states), constraint=constraints.simplex)
        A = numpyro.param("A", jnp.asarray(transitions), constraint=constraints.simplex)
        mu = numpyro.param("mu", jnp.asarray(means))
        sigma = numpyro.param("sigma", 0.7, constraint=constraints.positive)

        def step(before: Any, y: Any) -> Any:
            z = numpyro.sample("z", dist.Categorical(A[before]))
            numpyro.sample("y", dist.Normal(mu[z], sigma), obs=y)
            return z, None

        scan(step, numpyro.sample("z_0", dist.Categorical(pi)), y)

    m = jaxem.from_numpyro(program)
    theta, data = prepare(m, m.init(jax.random.key(0), y), y)
    e_step = measure(partial(jax.jit(m.expect), theta, data), repeats=repeats)
    whole = measure(partial(jaxem.em, m, theta, y, tol=0.0, max_steps=10), repeats=max(1, repeats // 3))
    steps = int(whole.value.num_steps)
    rows = [
        e_step.as_row() | {"program": "jaxem E-step", "objective": float(e_step.value.free_energy)},
        whole.as_row(1 / steps)
        | {"program": "jaxem.em (E and M)", "iterations": steps, "objective": float(whole.value.free_energy)},
    ]
    goals = [goal("first call of em, seconds", whole.compile_seconds, 10.0, at_least=False)]
    if find_spec("dynamax") is None:
        rows.append({"program": "dynamax", "note": "skipped: not installed (pip install dynamax)"})
    else:
        from dynamax.hidden_markov_model import hmm_two_filter_smoother

        def peer(theta: Any, y: Any) -> Any:
            table = dist.Normal(theta["mu"], theta["sigma"]).log_prob(y[:, None])
            found = hmm_two_filter_smoother(theta["pi"] @ theta["A"], theta["A"], table)
            return found.marginal_loglik, found.smoothed_probs, found.trans_probs

        timing = measure(partial(jax.jit(peer), theta, y), repeats=repeats)
        rows.append(timing.as_row() | {"program": "dynamax two-filter smoother", "objective": float(timing.value[0])})
        goals.append(goal("E-step / dynamax", e_step.median / timing.median, 1.5, at_least=False))
    setting = {"N": length, "D": 1, "K": states, "precision": 64, "start": "the truth"}
    statement = "Baum–Welch on one sequence, the program written with NumPyro's scan"
    return [{"name": "program_hmm", "statement": statement, "setting": setting, "rows": rows, "goals": goals}]


def main(arguments: list[str] | None = None) -> int:
    options = parser("programs", __doc__).parse_args(arguments)
    import jax

    found = mixtures(options.quick, options.seed)
    jax.config.update("jax_enable_x64", True)
    found += hidden_markov(options.quick, options.seed)
    return finish("programs", found, options)


if __name__ == "__main__":
    sys.exit(main())
