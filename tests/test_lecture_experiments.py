"""The experiments of the second half of the lecture run end to end, and their figures show what they measured."""

import importlib.util
from pathlib import Path

import bregman_limit
import em_vs_kmeans
import graphical_model
import jax
import numpy as np
import pytest
import three_gaussians

import jaxem

from _command import Config

ROOT = Path(__file__).resolve().parents[1]
CLAIMS = {
    "three_gaussians": {"joint", "rows", "Bayes", "fair", "EM", "end"},
    "em_vs_kmeans": {"C2", "J", "C12", "rate", "rateL", "rest", "ρ = 0", "finite", "fewer", "random", "end"},
    "graphical_model": {"nodes", "arrows", "plates", "observed", "slides"}
    | ({"render"} if importlib.util.find_spec("graphviz") else set()),
    "bregman_limit": {"D", "γ", "F", "m", "C2", "J", "hard", "path"},
}
MODULES = (three_gaussians, em_vs_kmeans, graphical_model, bregman_limit)


def script(name):
    """paper_figures/NAME.py, whose name is also an experiment's."""
    spec = importlib.util.spec_from_file_location(f"figure_of_{name}", ROOT / "paper_figures" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.takes_turns("experiment")
@pytest.mark.parametrize("experiment", CLAIMS)
def test_the_claims_and_what_the_figure_shows(experiment, measured):
    SHOWS[experiment](*measured(experiment, CLAIMS[experiment]))


def shows_three_gaussians(summary, arrays):
    assert arrays["x"].shape == (sum(summary["counts"]), 2)
    assert arrays["gamma"].shape == (len(arrays["z"]), 3)


def shows_em_vs_kmeans(summary, arrays):
    assert summary["kmeans_steps"] < summary["em_steps"] < len(arrays["soft_error"])
    assert 0.1 < summary["spectral_radius"] < 0.9
    assert arrays["gamma"].shape == (1 + len(summary["shown"]), 272, 2)


def shows_graphical_model(summary, arrays):
    """One graph is that of every family, and the table has a row for each; another graph is not passed over."""
    graphs, figure = summary["graphs"], script("graphical_model")
    one = figure.shared(graphs)
    assert one.arrows == {("pi", "z"), ("z", "x"), ("theta", "x")}
    assert one.plates == {("x", "z")}
    assert one.observed == {"x"}
    said = {text.get_text() for axis in figure.draw({"summary": summary}, arrays).axes for text in axis.texts}
    for family, graph in graphs.items():
        assert {family, figure.parameters(graph)} <= said
        names = {name for name in graph["parameters"] if name != "pi"}
        assert figure.parameters(graph).count(":") == len(names)
    odd = graphs | {"odd": graphs["gaussian.full"] | {"observed": []}}
    with pytest.raises(ValueError, match="odd has another graph"):
        figure.shared(odd)


def shows_bregman_limit(summary, arrays):
    assert set(summary["families"]) == set(bregman_limit.FAMILIES)
    for family in summary["families"]:
        assert arrays[f"{family} | path"][0] > 0.01  # hot: other centres
        assert arrays[f"{family} | gamma"][-1] == 0  # cold: one-hot
        assert arrays[f"{family} | F"][0] > 1 > 1e-12 > arrays[f"{family} | F"][-1]


SHOWS = {
    "three_gaussians": shows_three_gaussians,
    "em_vs_kmeans": shows_em_vs_kmeans,
    "graphical_model": shows_graphical_model,
    "bregman_limit": shows_bregman_limit,
}


def test_the_same_seed_gives_the_same_bits():
    first, second, third = (three_gaussians.run(Config(seed, quick=True)).arrays for seed in (3, 3, 4))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert not np.array_equal(first["x"], third["x"])


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
@pytest.mark.parametrize("arguments", [("--seed", "-1"), ("--seed", "one"), ("--components", "3")], ids=" ".join)
def test_bad_arguments_end_in_one_line_and_code_2(module, arguments, refuses):
    refuses(module, arguments)


@jax.numpy_rank_promotion("allow")  # NumPyro's own inspection broadcasts freely
def test_the_graph_check_sees_a_missing_arrow_and_a_missing_plate():
    m, key = three_gaussians.M, jax.random.key(0)
    theta = graphical_model.parameters(m, key)
    x, _ = jaxem.sample(m, theta, key, graphical_model.NUM_POINTS)
    graph = graphical_model.graph_of(m, theta, x)
    assert set(graphical_model.differences(m, graph, key).values()) == {0}
    wrong = graph | {"arrows": graph["arrows"][1:], "plates": {}}
    found = graphical_model.differences(m, wrong, key)
    assert (found["nodes"], found["arrows"], found["plates"], found["observed"]) == (0, 1, 2, 0)
