"""Starts: distinct, reproducible, inside jit and vmap, and the labels' maximum likelihood."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem import inits

from cases import CASES, FLOAT, cast, tolerance

M = CASES[0].m
DRAWS = [inits.random_points, inits.kmeans_plus_plus]


@pytest.mark.parametrize("draw", DRAWS)
def test_centres_are_distinct_rows_of_x(draw):
    """Old Faithful repeats rows; coincident centres are a tie."""
    x = cast(np.repeat(np.arange(5.0)[:, None], [1, 10, 10, 1, 30], axis=0) * [1.0, 2.0])
    keys = jax.random.split(jax.random.key(0), 200)
    many = jax.vmap(lambda key: draw(M, key, x, 4)["mu"])(keys)
    for mu in np.asarray(many):
        assert len(np.unique(mu, axis=0)) == 4
        assert all((np.asarray(x) == row).all(1).any() for row in mu)


@pytest.mark.parametrize("draw", DRAWS)
def test_draws_inside_jit_and_vmap_are_those_outside(draw):
    x = CASES[0].x()
    keys = jax.random.split(jax.random.key(1), 3)
    direct = jax.vmap(draw, in_axes=(None, 0, None, None))(M, keys, x, 3)
    through = jax.vmap(lambda key: draw(M, key, x, 3))(keys)
    jitted = jax.jit(draw, static_argnums=3)(M, keys[1], x, 3)
    alone = draw(M, keys[1], x, 3)
    for name in alone:
        assert np.array_equal(direct[name], through[name])
        assert np.allclose(direct[name][1], alone[name])
        assert np.allclose(jitted[name], alone[name])
    assert not np.array_equal(direct["mu"][0], direct["mu"][1])


def test_a_start_is_equal_weights_and_the_pooled_scale():
    x = CASES[0].x()
    theta = inits.random_points(M, jax.random.key(0), x, 3)
    assert np.allclose(theta["pi"], 1 / 3)
    assert float(theta["sigma"]) == pytest.approx(float(np.sqrt(np.asarray(x, float).var(axis=0).mean())), rel=1e-5)
    assert {leaf.dtype for leaf in jax.tree.leaves(theta)} == {np.dtype(FLOAT)}


def test_random_points_are_uniform_over_the_rows():
    x = cast(np.arange(4.0)[:, None])
    keys = jax.random.split(jax.random.key(0), 4000)
    mu = np.asarray(jax.vmap(lambda key: inits.random_points(M, key, x, 2)["mu"])(keys))[:, :, 0]
    pairs, counts = np.unique(mu, axis=0, return_counts=True)
    assert len(pairs) == 12  # every ordered pair
    assert np.abs(counts / 4000 - 1 / 12).max() < 5 * np.sqrt(1 / 12 / 4000)


def test_kmeans_plus_plus_draws_in_proportion_to_the_squared_distance():
    x = cast(np.array([[0.0], [1.0], [3.0]]))
    keys = jax.random.split(jax.random.key(0), 6000)
    mu = np.asarray(jax.vmap(lambda key: inits.kmeans_plus_plus(M, key, x, 2)["mu"])(keys))[:, :, 0]
    after_zero = mu[mu[:, 0] == 0, 1]
    share = (after_zero == 3).mean()
    assert share == pytest.approx(9 / 10, abs=5 * np.sqrt(0.09 / len(after_zero)))


def test_kmeans_plus_plus_starts_lower_than_random_points():
    rng = np.random.default_rng(0)
    x = cast(rng.normal(size=(300, 2)) * 0.1 + rng.integers(0, 8, size=(300, 1)) * 3.0)
    keys = jax.random.split(jax.random.key(0), 40)

    def mean_distortion(draw):
        return float(jnp.mean(jax.vmap(lambda key: jaxem.distortion(x, draw(M, key, x, 8)["mu"]))(keys)))

    assert mean_distortion(inits.kmeans_plus_plus) < 0.7 * mean_distortion(inits.random_points)


def test_from_labels_is_the_complete_data_maximum_likelihood():
    x = CASES[0].x(N=30)
    labels = np.arange(30) % 3
    theta = inits.from_labels(M, x, labels)
    groups = [np.asarray(x, float)[labels == k] for k in range(3)]
    assert np.allclose(theta["mu"], [group.mean(0) for group in groups], atol=tolerance(1e-12, 1e-5))
    pooled = np.sqrt(sum(((group - group.mean(0)) ** 2).sum() for group in groups) / 60)
    assert float(theta["sigma"]) == pytest.approx(pooled, rel=tolerance(1e-12, 1e-5))
    assert np.allclose(theta["pi"], 1 / 3)
    traced = jax.jit(lambda labels: inits.from_labels(M, x, labels, 3))(labels)
    assert np.allclose(traced["mu"], theta["mu"])


def test_too_few_distinct_rows_is_an_error():
    x = jnp.zeros((10, 2), FLOAT).at[0].set(1)
    for draw in DRAWS:
        with pytest.raises(ValueError, match=r"num_components.*distinct"):
            draw(M, jax.random.key(0), x, 3)
