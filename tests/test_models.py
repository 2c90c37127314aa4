"""Each family: the table is SciPy's and the NumPyro program's, and the M-step is the maximiser of Q."""

from itertools import chain, combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem

from cases import CASES, EPS, FLOAT, KINDS, afresh, cast, tolerance

each_kind = pytest.mark.parametrize("case", KINDS, ids=lambda c: c.name)
each_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)


@each_case
def test_log_joint_is_scipys(case):
    theta, x = case.theta(), case.x()
    measured = np.asarray(jaxem.log_joint(case.m, theta, x), float)
    within = tolerance(1e-12, 2e-5) * case.slack
    assert np.allclose(measured, case.log_joint(theta, x), rtol=within, atol=within)


@each_case
def test_log_joint_is_read_off_the_program(case):
    """The kernel is an optimisation; the trace of the NumPyro program is the oracle."""
    theta, x = case.theta(), case.x()
    program = np.asarray(case.m.traced_table(theta, x).T)
    within = case.numpyro * np.array([tolerance(1e-12, 2e-5), 64 * EPS])
    assert np.allclose(jaxem.log_joint(case.m, theta, x), program, *np.minimum(within, tolerance(1e-6, 1e-4)))


@each_case
def test_a_component_of_weight_zero_is_impossible_not_nan(case):
    theta, x = case.theta(), case.x()
    theta = theta | {"pi": cast([0.4, 0.0, 0.6])}
    assert np.isneginf(jaxem.log_joint(case.m, theta, x)[:, 1]).all()
    gamma = jaxem.responsibilities(case.m, theta, x)
    assert (gamma[:, 1] == 0).all()
    assert float(jaxem.free_energy(jaxem.log_joint(case.m, theta, x), gamma)) == pytest.approx(
        float(jaxem.log_likelihood(case.m, theta, x)), rel=8 * EPS
    )


def held_subsets(m):
    """Nothing held, each name alone, and all but each: the cases an M-step must tell apart."""
    names = m.parameters
    sizes = sorted({0, 1, len(names) - 1})
    return list(chain.from_iterable(combinations(names, size) for size in sizes))


@each_case
def test_no_random_direction_improves_the_m_step(case):
    """θ⁺ maximises Q, or the surface below it, over the free parameters, whichever are held."""
    theta, x = case.theta(), case.x()
    gamma = jaxem.responsibilities(case.m, theta, x)
    rng = np.random.default_rng(0)
    for held in held_subsets(case.m):
        m = case.m.hold(*held, *case.m.last)  # what asks the rows again is not done by `update`
        new = m.update(m.statistics(theta, x, gamma.T), theta, m.held)
        for name in m.held:
            assert np.array_equal(new[name], theta[name])

        @jax.jit
        def Q(u, m=m, new=new):
            return jnp.sum(gamma.T * m.climbed(m.coordinates(new).constrain(u), theta, x))

        best_u = m.coordinates(new).unconstrain(new)
        best = float(Q(best_u))
        allowance = 64 * EPS * float(jnp.sum(jnp.abs(gamma.T * m.table(new, x))))
        assert float(Q(m.coordinates(theta).unconstrain(theta))) <= best + allowance
        for size in (1e-3, 1e-1):
            u = {name: value + size * cast(rng.normal(size=value.shape)) for name, value in best_u.items()}
            assert float(Q(u)) <= best + allowance


SURFACES = [case for case in CASES if case.m.extras.surface is not None]


@pytest.mark.parametrize("case", SURFACES, ids=lambda case: case.name)
def test_the_surface_lies_below_and_touches(case):
    """ℓ̂ ≤ ℓ for every row and component, at any θ, with equality and the same slope at θ_old."""
    old, x = case.theta(), case.x()
    within = tolerance(1e-11, 1e-3) * (1 + float(jnp.abs(case.m.table(old, x)).max()))
    share = cast(np.random.default_rng(0).uniform(size=(3, len(x))))

    @jax.jit
    def gap(theta):
        def shared(theta):
            gap = case.m.table(theta, x) - case.m.climbed(theta, old, x)
            return jnp.sum(share * gap), gap

        return jax.grad(shared, has_aux=True)(theta)

    slope, at_old = gap(old)
    assert float(jnp.abs(at_old).max()) < within
    for seed in range(1, 5):
        moved = gap(case.theta(seed))
        assert float(moved[1].min()) > -within
        assert float(moved[1].max()) > 1e-3
        for name in old:
            size = 1 + float(jnp.abs(moved[0][name]).max())
            assert float(jnp.abs(slope[name]).max()) < tolerance(1e-9, 1e-2) * size


@each_case
def test_weights_are_repeated_rows(case):
    theta, x = case.theta(), case.x(N=48)  # enough rows that no covariance comes near singular
    counts = np.array([0, 1, 2, 3] * 12)
    repeated = jnp.repeat(x, counts, axis=0, total_repeat_length=int(counts.sum()))
    weighted = jaxem.em(case.m, theta, x, weights=counts, max_steps=2, tol=0)
    plain = jaxem.em(case.m, theta, repeated, max_steps=2, tol=0)
    assert float(weighted.free_energy) == pytest.approx(float(plain.free_energy), rel=tolerance(1e-11, 1e-4))
    for name in theta:
        assert np.allclose(
            weighted.theta[name], plain.theta[name], rtol=tolerance(1e-8, 1e-2), atol=tolerance(1e-10, 1e-3)
        )


@each_case
def test_samples_come_from_the_program(case):
    """Draws of each component have the log-density the model gives them: means agree to 5 standard errors."""
    theta = case.theta()
    x, z = jaxem.sample(case.m, theta, jax.random.key(0), 2000)
    assert x.shape[0] == z.shape[0] == 2000
    share = np.bincount(np.asarray(z), minlength=3) / 2000
    assert np.abs(share - np.asarray(theta["pi"])).max() < 5 * np.sqrt(0.25 / 2000)
    again, _ = jaxem.sample(case.m, theta, jax.random.key(0), 2000)
    assert np.array_equal(x, again)
    # the model is more likely than itself with components relabelled, on labelled draws
    table = np.asarray(jaxem.log_joint(case.m, theta, x))
    own = table[np.arange(2000), np.asarray(z)].sum()
    other = table[np.arange(2000), (np.asarray(z) + 1) % 3].sum()
    assert own > other


@each_case
def test_known_labels_fix_their_rows(case):
    """All labels known: one step is `from_labels`' complete-data maximum likelihood, and F its Q."""
    theta, x = case.theta(), case.x()
    labels = np.arange(len(x)) % 3
    fit = jaxem.em(case.m, theta, x, labels=labels, tol=0, max_steps=3)
    gamma = cast(np.eye(3)[labels])
    Q = jaxem.expected_log_joint(case.m, fit.theta, gamma, x)
    assert float(fit.free_energy) == pytest.approx(float(Q), rel=tolerance(1e-11, 1e-4))
    if case.m.extras.surface is not None:  # it climbs to that in more steps than one
        return
    complete = jaxem.inits.from_labels(case.m, x, labels)
    for name in theta:
        assert np.allclose(fit.theta[name], complete[name], rtol=tolerance(1e-9, 1e-3), atol=tolerance(1e-10, 1e-4))


@each_kind
def test_precision_in_is_precision_out(case):
    theta, x = case.theta(), case.x()
    fit = jaxem.em(case.m, theta, x, max_steps=2)
    for leaf in jax.tree.leaves((fit.theta, fit.free_energy, fit.gain)):
        assert leaf.dtype == FLOAT
    assert fit.num_steps.dtype == jnp.int32
    assert fit.status.dtype == jnp.int32
    if np.float64 == FLOAT and jnp.issubdtype(x.dtype, jnp.floating):
        single = jaxem.em(case.m, theta, x.astype(jnp.float32), max_steps=2)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(single.theta)} == {"float32"}
        assert float(single.free_energy) == pytest.approx(float(fit.free_energy), rel=1e-4)


@each_case
def test_relabelling_the_components_relabels_the_fit(case):
    theta, x = case.theta(), case.x()
    order = np.array([2, 0, 1])
    relabelled = {name: value[order] if name_has_K(case.m, name) else value for name, value in theta.items()}
    fit = jaxem.em(case.m, theta, x, max_steps=5)
    other = jaxem.em(case.m, relabelled, x, max_steps=5)
    assert float(fit.free_energy) == pytest.approx(float(other.free_energy), rel=tolerance(1e-11, 1e-4))
    for name, value in fit.theta.items():
        expected = value[order] if name_has_K(case.m, name) else value
        assert np.allclose(expected, other.theta[name], rtol=tolerance(1e-8, 1e-2), atol=tolerance(1e-9, 1e-3))


def name_has_K(m, name):
    return "K" in dict(m.shapes)[name].split()


@each_kind
def test_chunks_do_not_change_the_answer(case, monkeypatch):
    """E-step as map-reduce: chunks of 16 rows, the last overlapping, against one."""
    theta, x = case.theta(), case.x(N=601)
    weights = cast(np.random.default_rng(0).uniform(0, 2, size=601))
    whole = jaxem.em(case.m, theta, x, weights=weights, max_steps=3, tol=0)
    monkeypatch.setattr("jaxem._rows.chunks.FEWEST", 16)
    monkeypatch.setattr("jaxem._rows.chunks.TABLE_ENTRIES", 3)
    chunked = jaxem.em(afresh(case.m), theta, x, weights=weights, max_steps=3, tol=0)
    assert float(whole.free_energy) == pytest.approx(float(chunked.free_energy), rel=tolerance(1e-12, 1e-5))
    for name in theta:
        assert np.allclose(
            whole.theta[name], chunked.theta[name], rtol=tolerance(1e-9, 1e-3), atol=tolerance(1e-10, 1e-4)
        )
