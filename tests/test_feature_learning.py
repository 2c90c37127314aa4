"""Features learned through a fit: the experiment's claims at its quick size, and that they can fail."""

import feature_learning
import jax
import jax.numpy as jnp
import numpy as np
import pytest

CLAIMS = {"diff", "unroll", "memory", "V", "arms", "σ", "end"}


@pytest.mark.takes_turns("experiment")
@pytest.mark.parametrize("experiment", ["feature_learning"])
def test_the_claims_and_what_the_figure_shows(experiment, measured):
    summary, arrays = measured(experiment, CLAIMS)
    assert arrays["test"][-1] > arrays["test"][0]
    assert arrays["sigma_path"][-1, 1] >= arrays["sigma_on_grid"].max() - 1e-6
    implicit, *unrolled = summary["error"]
    assert implicit == 0 < unrolled[-1] < unrolled[0]
    assert summary["frozen"] > 100 * feature_learning.EXACT  # without ∂θ*/∂w the claims of gradients fail
    bytes_, most = summary["bytes"], summary["unrolled"][-1]
    assert bytes_[-1] > bytes_[1] + 8 * most  # unrolling keeps something of every step


def test_bad_arguments_end_in_one_line_and_code_2(refuses):
    refuses(feature_learning, ("--seed", "-1"))


@jax.numpy_rank_promotion("allow")  # the experiment broadcasts as NumPy does
def test_the_network_is_invertible_and_tells_its_determinant():
    rng = np.random.default_rng(0)
    w = feature_learning.identity(jax.random.key(0))
    w = jax.tree.map(lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape), w)
    x = jnp.asarray(rng.normal(size=(5, 2)))
    _, log_det = feature_learning.features(w, x)
    jacobians = jax.vmap(jax.jacobian(lambda x: feature_learning.features(w, x[None])[0][0]))(x)
    assert np.allclose(np.linalg.slogdet(jacobians)[1], log_det, atol=1e-12)
    nothing = feature_learning.features(feature_learning.identity(jax.random.key(0)), x)
    assert np.allclose(nothing[0], x)
    assert not nothing[1].any()
