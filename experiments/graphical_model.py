"""The graphical model of every family, read off its NumPyro program.

    python experiments/graphical_model.py [--seed S] [--out DIR] [--quick] [--no-plot]

The slides draw a mixture as a plate of N pairs (z_n, x_n), x_n filled as it is observed, with parameters outside. Here
nobody draws it: `numpyro.infer.inspect.get_model_relations` runs the program on shapes and follows which value enters
which density; paper_figures/graphical_model.py draws what it returns.

Certified for every family, each as a count of what differs: the nodes are the program's own sites and θ's names; an
arrow a → b stands exactly where moving the value of a moves the log-density of b, by evaluating the program's densities
twice; the plate holds exactly the sites that the program declares independent along it, and has N rows; filled nodes
are those observed. Together they say that the joint density is Π_n p(z_n | π) p(x_n | z_n, the rest of θ), which is
what `jaxem.log_joint` computes. With the Python package graphviz, `numpyro.render_model` must draw the same graph.

Writes DIR/graphical_model.json, .npz, .pdf and .png. Exits 0 when every claim holds, 1 when one fails, 2 for bad
arguments.
"""

import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import handlers
from numpyro.infer.inspect import get_model_relations

import jaxem
from jaxem import Mixture
from jaxem.families import bernoulli, categorical, exponential, gaussian, poisson

from _command import Config, Result, command, leave
from _results import Claim

FAMILIES: dict[str, Mixture] = {
    "gaussian.isotropic": gaussian.isotropic,
    "gaussian.spherical": gaussian.spherical,
    "gaussian.diagonal": gaussian.diagonal,
    "gaussian.tied": gaussian.tied,
    "gaussian.full": gaussian.full,
    "bernoulli.mixture": bernoulli.mixture,
    "categorical.mixture": categorical.mixture,
    "poisson.mixture": poisson.mixture,
    "exponential.mixture": exponential.mixture,
}
SIZES = {"K": 3, "D": 2, "C": 4}
NUM_POINTS = 7


def parameters(m: Mixture, key: jax.Array) -> dict[str, jax.Array]:
    """A random θ of these sizes, inside each parameter's constraint."""
    keys = jax.random.split(key, len(m.shapes))
    theta = {}
    for key, (name, spec) in zip(keys, m.shapes, strict=True):
        shape = tuple(SIZES[axis] for axis in spec.split())
        if name == "Sigma":
            root = 0.3 * jax.random.normal(key, shape)
            theta[name] = root @ jnp.swapaxes(root, -1, -2) + jnp.broadcast_to(jnp.eye(SIZES["D"]), shape)
        elif name == "mu":
            theta[name] = jax.random.normal(key, shape)
        else:
            positive = jax.random.uniform(key, shape, minval=0.2, maxval=0.8)
            simplex = name == "pi" or spec.endswith("C")
            theta[name] = positive / positive.sum(axis=-1, keepdims=True) if simplex else positive
    return theta


def graph_of(m: Mixture, theta: dict[str, jax.Array], x: jax.Array) -> dict[str, Any]:
    """Nodes, arrows and plates as NumPyro's inspection of the program returns them."""
    relations = get_model_relations(handlers.substitute(m.program, data=theta), model_args=(x,))
    sites = relations["sample_dist"]
    arrows = [
        [parent, child]
        for kind in ("sample_param", "sample_sample")
        for child, parents in relations[kind].items()
        for parent in parents
    ]
    return {
        "parameters": {name: dict(m.shapes)[name] for name in relations["param_constraint"]},
        "constraints": relations["param_constraint"],
        "sites": sites,
        "arrows": sorted(arrows),
        "plates": {plate: sorted(members) for plate, members in relations["plate_sample"].items()},
        "observed": sorted(relations["observed"]),
    }


# ---- the same facts, from the program's trace and densities alone


def trace_of(m: Mixture, theta: dict[str, jax.Array], x: jax.Array, z: jax.Array) -> dict[str, Any]:
    """The program's sites at these values."""
    model = handlers.substitute(m.program, data=theta | {"z": z})
    with jax.numpy_rank_promotion("allow"):
        return handlers.trace(handlers.seed(model, jax.random.key(0))).get_trace(x)


def moved_arrows(m: Mixture, theta: dict[str, jax.Array], x: jax.Array, other: dict[str, Any]) -> set[tuple[str, str]]:
    """a → b wherever another value of a gives another log-density of b."""

    def densities(theta: dict[str, jax.Array], x: jax.Array, z: jax.Array) -> dict[str, np.ndarray]:
        sites = trace_of(m, theta, x, z)
        with jax.numpy_rank_promotion("allow"):
            return {
                name: np.asarray(s["fn"].log_prob(s["value"])) for name, s in sites.items() if s["type"] == "sample"
            }

    z = jnp.arange(NUM_POINTS) % SIZES["K"]
    before = densities(theta, x, z)
    moved = set()
    for name in (*theta, "z", "x"):
        after = densities(
            theta | ({name: other[name]} if name in theta else {}),
            other["x"] if name == "x" else x,
            (z + 1) % SIZES["K"] if name == "z" else z,
        )
        moved |= {(name, site) for site in before if site != name and np.any(after[site] != before[site])}
    return moved


def differences(m: Mixture, graph: dict[str, Any], key: jax.Array) -> dict[str, int]:
    """How many nodes, arrows, plate memberships and filled nodes differ from the program's own."""
    theta, other = (parameters(m, key) for key in jax.random.split(key))
    x, another = (jaxem.sample(m, theta, key, NUM_POINTS)[0] for key in jax.random.split(key))
    sites = trace_of(m, theta, x, jnp.arange(NUM_POINTS) % SIZES["K"])
    samples = {name: site for name, site in sites.items() if site["type"] == "sample"}
    plates = {(frame.name, name) for name, site in samples.items() for frame in site["cond_indep_stack"]}
    sizes = {frame.size for site in samples.values() for frame in site["cond_indep_stack"]}
    drawn = {(plate, name) for plate, members in graph["plates"].items() for name in members}
    return {
        "nodes": len({*graph["parameters"], *graph["sites"]} ^ {*theta, *samples}),
        "arrows": len({tuple(arrow) for arrow in graph["arrows"]} ^ moved_arrows(m, theta, x, other | {"x": another})),
        "plates": len(drawn ^ plates) + len(sizes ^ {NUM_POINTS}),
        "observed": len({*graph["observed"]} ^ {name for name, site in samples.items() if site["is_observed"]}),
    }


def slides(m: Mixture) -> dict[str, set]:
    """The slides' diagram: π → z → x in a plate, every other parameter → x, x observed."""
    others = {(name, "x") for name in m.parameters if name != "pi"}
    return {"arrows": {("pi", "z"), ("z", "x")} | others, "plates": {("z", "x")}, "observed": {"x"}}


def from_the_slides(m: Mixture, graph: dict[str, Any]) -> int:
    """How many of the arrows, plates and filled nodes differ from the slides'."""
    found = {
        "arrows": {tuple(arrow) for arrow in graph["arrows"]},
        "plates": {tuple(sorted(members, reverse=True)) for members in graph["plates"].values()},
        "observed": {*graph["observed"]},
    }
    return sum(len(found[kind] ^ wanted) for kind, wanted in slides(m).items())


def rendered(m: Mixture, theta: dict[str, jax.Array], x: jax.Array) -> set[tuple[str, str]]:
    """The arrows of `numpyro.render_model`; graphviz writes 'a -> b' lines, no binary is run."""
    digraph = numpyro.render_model(
        handlers.substitute(m.program, data=theta), model_args=(x,), render_params=True, render_distributions=True
    )
    lines = (line.strip().split(" [")[0] for line in digraph.source.splitlines() if "->" in line)
    return {tuple(end.strip().strip('"') for end in line.split("->")) for line in lines}


# ---- the experiment


def run(config: Config) -> Result:
    """A graph per family, and what it is checked against."""
    has_graphviz = importlib.util.find_spec("graphviz") is not None
    graphs, counts, drawn_apart = {}, {}, 0
    keys = jax.random.split(jax.random.key(config.seed), len(FAMILIES))
    for key, (name, m) in zip(keys, FAMILIES.items(), strict=True):
        theta = parameters(m, key)
        x, _ = jaxem.sample(m, theta, key, NUM_POINTS)
        graphs[name] = graph_of(m, theta, x)
        counts[name] = differences(m, graphs[name], key) | {"slides": from_the_slides(m, graphs[name])}
        if has_graphviz:
            drawn_apart += len(rendered(m, theta, x) ^ {tuple(arrow) for arrow in graphs[name]["arrows"]})
    summary = {
        "graphs": graphs,
        "differences": counts,
        "sizes": SIZES,
        "render_model": "compared" if has_graphviz else "skipped: the Python package graphviz is not installed",
    }
    verdicts = claims(counts)
    if has_graphviz:
        verdicts.append(Claim("render", "arrows that numpyro.render_model draws otherwise", float(drawn_apart), 0.0))
    pairs = [(name, *arrow) for name, graph in graphs.items() for arrow in graph["arrows"]]
    return Result(summary, verdicts, {"arrows": np.array(pairs)})


def claims(counts: dict[str, dict[str, int]]) -> list[Claim]:
    """A count of what differs, the worst family; none may."""
    statements = {
        "nodes": "nodes other than the program's sites and θ",
        "arrows": "arrows a → b other than where moving a moves the density of b",
        "plates": "plates other than the program's conditional independences, or of another size",
        "observed": "filled nodes other than the observed sites",
        "slides": "arrows, plates or filled nodes other than the slides'",
    }
    return [
        Claim(kind, f"{statement} ({len(counts)} families)", float(max(count[kind] for count in counts.values())), 0.0)
        for kind, statement in statements.items()
    ]


def report(summary: dict[str, Any]) -> None:
    print()
    for name, graph in summary["graphs"].items():
        arrows = ", ".join(f"{a} → {b}" for a, b in graph["arrows"])
        plates = "; ".join(f"plate {plate}: {' '.join(members)}" for plate, members in graph["plates"].items())
        print(f"{name:20} {arrows:44} {plates}; observed: {' '.join(graph['observed'])}")
    print(f"\nnumpyro.render_model: {summary['render_model']}\n")


def main(arguments: list[str] | None = None) -> int:
    return command("graphical_model", __doc__, run, report, arguments)


if __name__ == "__main__":
    leave(main())
