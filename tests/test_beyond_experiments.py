"""The experiments about C13's later splits and C20, C22, C25, C26 and C27 run end to end, and see what is wrong."""

import _claims
import nats_left
import numpy as np
import phase_diagram
import pytest
import seeding
import two_gaussians

CLAIMS = {
    "phase_diagram": {"σ_c", "σ_k", "ρ", "max", "count", "back", "best", "rival", "jump", "pair", "end"},
    "two_gaussians": {"C22", "quad", "map", "C25", "c > μ", "grid", "kmeans", "em", "bias"},
    "seeding": {"C26", "K = 1", "law", "mean", "other"},
    "nats_left": {"Newton", "low", "high", "⅔", "some", "regular", "end"},
}
MODULES = (phase_diagram, two_gaussians, seeding, nats_left)


@pytest.mark.takes_turns("experiment")
@pytest.mark.parametrize("experiment", CLAIMS)
def test_the_claims_and_what_the_figure_shows(experiment, measured):
    SHOWS[experiment](*measured(experiment, CLAIMS[experiment]))


def shows_phase_diagram(summary, arrays):
    """Splits in the order of cooling; no shared cluster's λ/σ² is above EM's spectral radius, and all have parted."""
    for name, found in summary["sets"].items():
        at = [split["measured"] for split in found["splits"]]
        assert at == sorted(at, reverse=True)
        assert len(at) >= found["centres"] - 1 > 1
        pull, radius = arrays[f"{name} | pull"], arrays[f"{name} | radius"]
        assert np.nanmax(pull - radius[:, None]) < 1e-7
        assert np.isnan(pull[-1]).all()
        assert np.ptp(arrays[f"{name} | down"][0]) == 0
        assert found["survives_to"] >= found["better_to"] == found["jumps_at"] > 1  # C19 sees what the way back does
        assert abs(found["law_ratio"] - 1) < 0.02


def shows_two_gaussians(summary, arrays):
    assert arrays["path"].shape[1] == len(summary["starts"])
    assert 0.99 < summary["tightest"] <= 1 + 1e-6  # the bound is attained
    assert (arrays["ratio"] <= arrays["kappa"] + 1e-9).all()


def shows_seeding(summary, arrays):
    assert arrays["probability"].sum() == pytest.approx(1, abs=1e-12)
    assert summary["mean"]["greedy"] < summary["mean"]["law"]
    assert summary["surprise"]["greedy"] > 6 > summary["surprise"]["plain"]


def shows_nats_left(summary, arrays):
    lowest, *_, highest = summary["over_truth"]["aitken"]
    assert lowest < 0.95 < highest  # it under-reports
    assert len(arrays["looked_at"]) == arrays["newton"].shape[1]


SHOWS = {
    "phase_diagram": shows_phase_diagram,
    "two_gaussians": shows_two_gaussians,
    "seeding": shows_seeding,
    "nats_left": shows_nats_left,
}


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_bad_arguments_end_in_one_line_and_code_2(module, refuses):
    refuses(module, ("--seed", "-1"))


def test_halving_finds_the_last_false_and_says_where_there_is_none():
    assert phase_diagram.halved(lambda sigma: sigma < 0.777, 1.0, 0.5, 13) == pytest.approx(0.777, rel=1e-4)
    assert np.isnan(phase_diagram.halved(lambda sigma: True, 1.0, 0.5, 3))
    assert np.isnan(phase_diagram.halved(lambda sigma: False, 1.0, 0.5, 3))


def test_a_walk_without_a_split_or_a_way_back_fails_its_claims():
    """What was not seen is no evidence: neither an exception nor a claim that holds."""
    nothing = {"sigma_c": 1.0, "splits": [], "survives_to": 0.0, "better_to": 0.0, "jumps_at": 0.0, "pair_returns": 0.0}
    nothing |= {"largest_radius": 0.9, "unfinished": 0, "unseen": 1.0, "miscounted": 1}
    failing = {claim.id for claim in phase_diagram.claims([nothing]) if not claim.holds}
    assert failing == {"σ_c", "σ_k", "ρ", "count", "back", "best", "rival", "jump"}


def test_what_says_nothing_hides_no_violation():
    """∞ below ∞ is no evidence, nor a reason not to look at the rest; a NaN is a reason to fail."""
    nothing = (np.inf, np.inf)
    assert _claims.worst("id", "all below", [nothing, (1.0, 2.0)]).holds
    for bad in [(2.0, 1.0), (1.0, 0.0), (np.inf, 1.0), (np.nan, 1.0), (0.0, np.nan), (np.nan, np.inf)]:
        assert not _claims.worst("id", "all below", [nothing, (1.0, 2.0), bad]).holds


def test_runs_without_a_rate_or_a_decrement_fail_their_claims():
    summary = {"over_truth": {name: [1.0] * 5 for name in ("aitken", "upper", "newton")}, "pitchfork": 2 / 3}
    summary |= {"unfinished": 0, "num_runs": 8, "singular": 0, "without": 0}
    assert all(claim.holds for claim in nats_left.claims(summary))
    failing = {claim.id for claim in nats_left.claims(summary | {"singular": 8, "without": 1}) if not claim.holds}
    assert failing == {"some", "regular"}


def test_C22_with_the_exponent_doubled_or_about_the_other_mean_is_false():
    size, mu = two_gaussians.pairs(np.random.default_rng(0), 300, 2)
    before, after = (np.linalg.norm(value - mu, axis=1) for value in (size, two_gaussians.em_map(size, mu)))
    kappa = two_gaussians.kappa(size, mu)
    assert (after - kappa * before).max() < 1e-12
    assert (after - kappa**3 * before).max() > 1e-3
    flipped = np.linalg.norm(two_gaussians.em_map(-size, mu) - mu, axis=1)
    assert (flipped - kappa * np.linalg.norm(size + mu, axis=1)).max() > 1e-3  # ⟨λ, μ⟩ < 0 goes to −μ


def test_C25_is_the_absolute_moment():
    for mu, sigma in ((0.5, 1.0), (2.0, 0.3)):
        draws = np.abs(mu + sigma * np.random.default_rng(0).normal(size=200_000))
        assert two_gaussians.folded(mu, sigma) == pytest.approx(draws.mean(), abs=5 * draws.std() / 200_000**0.5)


def test_the_law_of_seeds_by_hand():
    """Rows 0, 1, 3: with K = 2 the first is each with ⅓, the second ∝ squared distances; J by hand."""
    law = seeding.law_of_seeds(np.array([[0.0], [1.0], [3.0]]), np.ones(3), 2)
    assert law[(0, 1)] == pytest.approx((1 / 30, 4.0))
    assert law[(2, 0)] == pytest.approx((9 / 39, 1.0))
    assert sum(p for p, _ in law.values()) == pytest.approx(1)
    assert seeding.least(np.array([[0.0], [1.0], [3.0]]), np.array([1.0, 1.0, 2.0]), 2) == pytest.approx(0.5)
    uniform = np.array([100] * 6)
    assert seeding.surprise(uniform, np.array([p for p, _ in law.values()])) > 6
    assert seeding.surprise(uniform, np.full(6, 1 / 6)) < 1


def test_Aitken_is_exact_on_one_mode_and_low_on_two():
    t = np.arange(40)
    truth, gain, aitken = nats_left.left(-(0.5**t), 0.0, 1e-14)
    told = ~np.isnan(aitken)
    assert 20 < told.sum() < 40  # nothing is said of rounding
    np.testing.assert_allclose(aitken[told], truth[told], rtol=1e-9)
    np.testing.assert_allclose(gain[told] * 0.5 / (1 - 0.5), truth[told], rtol=1e-9)
    truth, gain, aitken = nats_left.left(-(0.5**t) - 0.1 * 0.9**t, 0.0, 1e-14)
    told = ~np.isnan(aitken)
    assert (aitken[told] < truth[told] * (1 + 1e-9)).all()
    assert (truth[told] < gain[told] * 0.9 / (1 - 0.9)).all()
