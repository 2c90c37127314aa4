"""Programs with a row plate: the work of an iteration beside the family's, memory, and many sequences.

    python experiments/benchmarks/program_rows.py [--seed S] [--out DIR] [--quick]

Work is what XLA counts in one compiled step (E and M): operations, bytes, exponentials; loops count their body once, so
it compares two forms of one model on the same rows, not two sizes. Memory: N = 4,000,000, K = 8, D = 2, float32, the
peak beyond the data in a process of its own, compilation included. Sequences: 1,000 × T = 200, K = 8, float64, one
iteration of Baum–Welch, beside dynamax's `fit_em` and hmmlearn. Times want a quiet machine. One JAX device.
"""

import json
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from _timing import finish, goal, measure, parser, peak_beyond

LIMIT = 300.0  # MB beyond the data


def spherical(num_components: int, centres: Any) -> Any:
    """A mixture as a program."""
    import jax.numpy as jnp
    import numpyro
    from numpyro import distributions as dist
    from numpyro.distributions import constraints

    def program(x: Any) -> None:
        start = jnp.full(num_components, 1 / num_components)
        pi = numpyro.param("pi", start, constraint=constraints.simplex)
        mu = numpyro.param("mu", jnp.asarray(centres / 2))
        sigma = numpyro.param("sigma", jnp.ones(num_components), constraint=constraints.positive)
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", dist.Categorical(pi))
            numpyro.sample("x", dist.Normal(mu[z], sigma[z][..., None]).to_event(1), obs=x)

    return program


def rows_of(num_rows: int, num_components: int, seed: int) -> tuple[Any, Any]:
    """Rows about random centres, and those."""
    rng = np.random.default_rng(seed)
    centres = 2 * rng.normal(size=(num_components, 2))
    x = centres[rng.integers(num_components, size=num_rows)] + rng.normal(size=(num_rows, 2))
    return x.astype(np.float32), centres


def work(quick: bool, seed: int) -> dict[str, Any]:
    """N = 100,000 D = 2 K = 3, float32: a step of the family, of the program by rows, and of its whole tables."""
    import jax
    import jax.numpy as jnp

    import jaxem
    from jaxem._core.checks import enter
    from jaxem._core.model import maximize
    from jaxem.families import gaussian

    num_rows, repeats = (20_000, 1) if quick else (100_000, 15)
    x, centres = rows_of(num_rows, 3, seed)
    m = jaxem.from_numpyro(spherical(3, centres))
    theta = m.init(jax.random.key(0), jnp.asarray(x))
    found, medians = [], {}
    for label, model in (("family", gaussian.spherical), ("program, by rows", m), ("program, whole tables", m)):
        start, data = enter(model, theta, jnp.asarray(x))
        if label == "program, whole tables":
            data = data._replace(x=data.x.by(None))
        model.get_ready(start, data)

        def step(theta: Any, data: Any, model: Any = model) -> Any:
            expectation = model.expect(theta, data)
            return expectation.free_energy, maximize(model, expectation, theta, data)

        compiled = jax.jit(step).lower(start, data).compile()
        cost = compiled.cost_analysis() or {}
        timing = measure(compiled, start, data, repeats=repeats)
        medians[label] = timing.median
        counted = ", ".join(f"{cost.get(name, np.nan):,.0f} {name}" for name in ("flops", "bytes accessed"))
        note = f"{counted}, {cost.get('transcendentals', np.nan):,.0f} exponentials and logarithms"
        objective = float(timing.value[0])
        found.append(timing.as_row() | {"program": label, "iterations": 1, "objective": objective, "note": note})
    ratio = medians["program, by rows"] / medians["family"]
    return {
        "name": "program_rows",
        "statement": "one step (E and M) of a spherical mixture written as a NumPyro program, by rows",
        "setting": {"N": num_rows, "D": 2, "K": 3, "precision": 32, "start": "half-way to the true centres"},
        "rows": found,
        "goals": [goal("program / family", ratio, 2.0, at_least=False)],
    }


def child(num_rows: int, seed: int) -> dict[str, float]:
    """MB of the data, and of a fit's peak beyond."""
    import jax
    import jax.numpy as jnp

    import jaxem

    x, centres = rows_of(num_rows, 8, seed)
    m, rows = jaxem.from_numpyro(spherical(8, centres)), jax.block_until_ready(jnp.asarray(x))
    theta = m.init(jax.random.key(0), rows[:100])
    beyond = peak_beyond(lambda: jaxem.em(m, theta, rows, tol=0.0, max_steps=2))
    return {"data": x.nbytes / 1e6, "beyond": beyond}


def memory(quick: bool, seed: int) -> dict[str, Any]:
    """From a process of its own."""
    num_rows = 40_000 if quick else 4_000_000
    command = [sys.executable, __file__, "--child", str(num_rows), "--seed", str(seed)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    note = f"beyond the data's {found['data']:.0f} MB"
    return {
        "name": "program_rows_memory",
        "statement": "peak MB of a fit beyond its data, compilation included, in a process of its own",
        "setting": {"N": num_rows, "D": 2, "K": 8, "precision": 32, "start": "half-way to the true centres"},
        "rows": [{"program": "from_numpyro", "memory_mb": found["beyond"], "note": note}],
        "goals": [goal("peak MB beyond the data", found["beyond"], LIMIT, at_least=False)],
    }


def sequences(quick: bool, seed: int) -> dict[str, Any]:
    """1,000 × T = 200, K = 8, float64: an iteration of Baum–Welch; the plate of sequences is the row plate."""
    import jax
    import jax.numpy as jnp
    import numpyro
    from numpyro import distributions as dist
    from numpyro.contrib.control_flow import scan
    from numpyro.distributions import constraints

    import jaxem

    count, length, states, repeats, steps = (20, 20, 3, 1, 2) if quick else (1_000, 200, 8, 5, 10)
    rng = np.random.default_rng(seed)
    A, means = rng.dirichlet(np.ones(states), states), np.linspace(-4, 4, states)
    z = np.zeros((count, length), int)
    for t in range(1, length):
        z[:, t] = [rng.choice(states, p=A[before]) for before in z[:, t - 1]]
    y = means[z] + 0.7 * rng.normal(size=z.shape)

    def program(y: Any) -> None:
        A_ = numpyro.param("A", jnp.asarray(A), constraint=constraints.simplex)
        mu = numpyro.param("mu", jnp.asarray(means))
        sigma = numpyro.param("sigma", jnp.full(states, 0.7), constraint=constraints.positive)

        def step(before: Any, y: Any) -> Any:
            with numpyro.plate("sequences", len(y), dim=-1):
                z = numpyro.sample("z", dist.Categorical(A_[before]))
                numpyro.sample("y", dist.Normal(mu[z], sigma[z]), obs=y)
            return z, None

        scan(step, jnp.zeros(len(y), int), y.T)

    m, data = jaxem.from_numpyro(program), jnp.asarray(y)
    theta = m.init(jax.random.key(0), data)
    timing = measure(partial(jaxem.em, m, theta, data, tol=0.0, max_steps=steps), repeats=repeats)
    rows = [timing.as_row(1 / steps) | {"program": "jaxem.em", "iterations": steps}]
    rows[0]["objective"] = float(timing.value.free_energy)
    goals = []
    if find_spec("dynamax") is None:
        rows.append({"program": "dynamax", "note": "skipped: not installed (pip install dynamax)"})
    else:
        from dynamax.hidden_markov_model import DiagonalGaussianHMM

        hmm = DiagonalGaussianHMM(states, 1)
        params, props = hmm.initialize(
            initial_probs=jnp.asarray(A[0]),
            transition_matrix=jnp.asarray(A),
            emission_means=jnp.asarray(means)[:, None],
            emission_scale_diags=jnp.full((states, 1), 0.7),
        )
        peer = measure(
            partial(hmm.fit_em, params, props, data[..., None], num_iters=steps, verbose=False), repeats=repeats
        )
        rows.append(peer.as_row(1 / steps) | {"program": "dynamax fit_em", "iterations": steps})
        goals.append(goal("dynamax / jaxem", peer.median / timing.median, 2.0, at_least=True))
    if find_spec("hmmlearn") is None:
        rows.append({"program": "hmmlearn", "note": "skipped: not installed (pip install hmmlearn)"})
    else:
        from hmmlearn.hmm import GaussianHMM

        def fit() -> Any:
            found = GaussianHMM(states, "diag", n_iter=steps, tol=-np.inf, init_params="", params="stmc")
            found.startprob_, found.transmat_ = A[0], A
            found.means_, found.covars_ = means[:, None], np.full((states, 1), 0.49)
            return found.fit(y.reshape(-1, 1), [length] * count)

        peer = measure(fit, repeats=repeats)
        rows.append(peer.as_row(1 / steps) | {"program": "hmmlearn", "iterations": steps})
        goals.append(goal("hmmlearn / jaxem", peer.median / timing.median, 2.0, at_least=True))
    setting = {"N": count * length, "D": 1, "K": states, "precision": 64, "start": "the truth"}
    statement = f"an iteration of Baum–Welch on {count} sequences of {length}"
    return {"name": "program_rows_hmm", "statement": statement, "setting": setting, "rows": rows, "goals": goals}


def main(arguments: list[str] | None = None) -> int:
    options = parser("program_rows", __doc__)
    options.add_argument("--child", type=int, help="rows: print what a fit of so many takes, and end")
    options = options.parse_args(arguments)
    if options.child:
        print(json.dumps(child(options.child, options.seed)))
        return 0
    import jax

    found = [work(options.quick, options.seed), memory(options.quick, options.seed)]
    jax.config.update("jax_enable_x64", True)
    return finish("program_rows", [*found, sequences(options.quick, options.seed)], options)


if __name__ == "__main__":
    sys.exit(main())
