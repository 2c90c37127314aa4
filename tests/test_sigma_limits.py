"""C17–C21 as the σ-sweep claims them: each holds on small data, and fails when the theorem or the program is wrong."""

from functools import partial
from itertools import pairwise

import _sigma_limits
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxem import convergence_rate, distortion, em, kmeans, limits
from jaxem.families import gaussian

M = gaussian.isotropic.hold("pi", "sigma")
IDS = ["C17", "C18", "C19", "C20", "C21"]


def blobs(num_features):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(36, num_features)) + 3.0 * (np.arange(36) % 3 == 0)[:, None])


class Sweep:
    """A sweep of three σ on few rows, as `sigma_sweep.run` makes it."""

    def __init__(self, x, scales=(1.2, 0.4, 0.25)):
        self.x, self.winner = x, kmeans(x, x[:2]).theta["mu"]
        self.starts = jnp.stack([x[:2], x[4:6]])
        self.sigmas = [scale * float(limits.critical_sigma(x)) for scale in scales]
        self.centres = [
            em(M, limits.parameters(self.winner, sigma), x, tol=0.0, max_steps=500).theta["mu"] for sigma in self.sigmas
        ]

    def rows(self):
        @jax.jit
        def at(mu, sigma):
            theta = limits.parameters(mu, sigma)
            rate = convergence_rate(M, theta, self.x).spectral_radius
            shadow = _sigma_limits.of_shadow(self.x, self.winner, sigma)
            return shadow | _sigma_limits.of_rate(self.x, theta, rate)

        rows = []
        for mu, sigma in zip(self.centres, self.sigmas, strict=True):
            row = {"sigma": sigma}
            for name, value in at(mu, jnp.asarray(sigma)).items():
                if isinstance(value, limits.Bound):
                    row |= {name: float(value.value), f"{name}_bound": float(value.bound)}
                else:
                    row[name] = float(value)
            rows.append(row)
        return rows

    def measured(self, rows):
        of_data = _sigma_limits.of_data(self.x, self.sigmas, self.winner, self.starts, quick=True)
        critical = float(limits.critical_sigma(self.x))
        mixtures = _sigma_limits.of_all_mixtures(self.x, rows, self.centres, critical, quick=True)
        return of_data | {"mixtures": mixtures}


@pytest.fixture(scope="module")
def swept():
    return Sweep(blobs(2))


@pytest.fixture(scope="module")
def rows(swept):
    return swept.rows()


@pytest.fixture(scope="module")
def found(swept, rows):
    return swept.measured(rows)


def verdicts(rows, found):
    return {claim.id: claim for claim in _sigma_limits.claims(rows, found)}


def test_every_claim_holds_and_is_nearly_attained(rows, found):
    claims = verdicts(rows, found)
    assert list(claims) == IDS
    assert all(claim.holds for claim in claims.values()), claims
    assert claims["C17"].worst / claims["C17"].bound > 0.3
    assert claims["C18"].worst / claims["C18"].bound > 0.9
    assert claims["C19"].worst > 0
    assert claims["C21"].worst / claims["C21"].bound > 0.8
    assert found["mixtures"][0]["is_bound"]


def test_the_shadow_of_another_sigma_is_none(rows, found):
    """C17: EM's centres of a hotter σ are farther than certified."""
    wrong = [row | {"C17": hotter["C17"]} for hotter, row in pairwise(rows)]
    assert not verdicts(wrong, found)["C17"].holds


def test_half_of_j_is_below_the_bound(swept, monkeypatch):
    """C18: the ½ that the sources leave out."""
    monkeypatch.setattr(_sigma_limits, "distortion", lambda x, mu: distortion(x, mu) / 2)
    assert not _sigma_limits.of_kmeans(swept.x, swept.winner, quick=True)["C18"].holds


def test_a_supremum_sought_in_one_place_is_beaten(swept, rows, found, monkeypatch):
    """C19: D at the smaller cluster's centre alone, where it is N_k/π_k − N < 0."""
    atom = np.asarray(swept.winner.max(axis=0))
    monkeypatch.setattr(_sigma_limits, "global_gap", partial(_sigma_limits.global_gap, box=(atom, atom)))
    wrong = found | {
        "mixtures": _sigma_limits.of_all_mixtures(swept.x, rows, swept.centres, swept.sigmas[1], quick=True)
    }
    assert not verdicts(rows, wrong)["C19"].holds


def test_pairs_beat_the_mean_below_the_largest_eigenvalue(swept, rows, found, monkeypatch):
    """C20′ with the mean variance of the features for λ_max."""
    law = limits.split(swept.x)
    wrong = law._replace(sigma=jnp.sqrt(jnp.mean(jnp.var(swept.x, axis=0))))
    monkeypatch.setattr(limits, "split", lambda x: wrong)
    split = _sigma_limits.of_split(swept.x, swept.starts, swept.sigmas)
    assert not verdicts(rows, found | {"split": split})["C20"].holds


def test_half_the_bound_of_the_rate_is_exceeded(swept, monkeypatch):
    """C21."""
    whole = limits.rate_bound
    monkeypatch.setattr(limits, "rate_bound", lambda *arguments: whole(*arguments) / 2)
    assert not verdicts(swept.rows(), {"kmeans": None, "mixtures": [], "split": SPLIT})["C21"].holds


SPLIT = {"C20": limits.Bound(jnp.zeros(1), jnp.ones(1))}


def test_the_law_is_as_good_as_it_says_and_no_claim(found):
    (law,) = _sigma_limits.laws(found)
    assert (law["id"], law["kind"]) == ("C20", "law")
    off = np.abs(law["measured"] / law["law"] - 1) / law["share"]
    assert (off[law["share"] <= 0.1] < 1.01).all()  # THEOREMS' number for its O(ε)
    assert off[-1] == pytest.approx(off[-2], rel=0.1)  # it is of first order in ε: EM is at rest, and not at its start
    assert (law["rest"] < 1e-9).all()


def test_where_nothing_is_certified_nothing_is_claimed(rows, found):
    hot = [row for row in rows if not np.isfinite(row["C17_bound"])]
    assert hot
    claim = verdicts(hot, found)["C17"]
    assert claim.holds
    assert "no certificate" in claim.statement


def test_no_law_where_the_direction_is_not_one():
    square = jnp.asarray([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    split = _sigma_limits.of_split(square, square[None, :2], [2.0])
    assert _sigma_limits.laws({"split": split, "kmeans": {}, "mixtures": []}) == []
    assert split["C20"].holds.all()


def test_a_supremum_without_proof_is_an_estimate_and_no_claim(rows, found):
    guessed = found | {"mixtures": [at | {"is_bound": False} for at in found["mixtures"]]}
    assert list(verdicts(rows, guessed)) == [name for name in IDS if name != "C19"]
    assert [law["kind"] for law in _sigma_limits.laws(guessed)] == ["law", "estimate"]


def test_too_many_rows_are_said_to_be(swept, rows, monkeypatch):
    monkeypatch.setattr(_sigma_limits, "MOST_ROWS", 10)
    found = swept.measured(rows)
    assert list(verdicts(rows, found)) == ["C17", "C20", "C21"]
    assert [law["kind"] for law in _sigma_limits.laws(found)] == ["law", "untried"]
