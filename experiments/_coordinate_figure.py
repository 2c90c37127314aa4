"""The figure of coordinate_vs_gradient: F* − F against steps and against time, a row per problem."""

from typing import Any

import matplotlib
import numpy as np

from _style import BLUE, DOUBLE, GREEN, GREY, ORANGE, RED, STYLE, page


def draw(cases: list[dict[str, Any]], gem_steps: int) -> Any:
    """F* − F, a row per problem: against steps, and against time."""
    styles = {  # EM thin over the broad GEM: they often coincide
        "GEM": {"color": GREEN, "linewidth": 3.5, "alpha": 0.5, "label": f"EM, M-step by {gem_steps} steps of L-BFGS"},
        "Adam": {"color": ORANGE, "label": "joint, Adam, best rate (faint: others)"},
        "L-BFGS": {"color": RED, "label": "joint, L-BFGS"},
        "EM": {"color": BLUE, "label": "EM", "zorder": 3},
    }
    with matplotlib.rc_context(STYLE):
        figure = page(DOUBLE, 1.1 + 2.05 * len(cases))
        axes = figure.subplots(len(cases), 2, squeeze=False, sharey="row")
        letters = iter("abcdefghij")
        for (left, right), case in zip(axes, cases, strict=True):
            top, allowed = case["F_star"], case["F_star"] - case["target"]
            best = next(row["method"] for row in case["rows"] if row["chosen"] and row["method"].startswith("Adam"))
            for row in case["rows"]:
                short = top - np.fmax.accumulate(case["traces"][row["method"]].value)
                steps, style = np.arange(1, len(short) + 1), styles[row["method"].split()[0].rstrip(",")]
                if not row["chosen"]:
                    left.plot(steps, short, color=style["color"], linewidth=0.6, alpha=0.4, zorder=1)
                    continue
                timed = row["steps_tried"] if row["steps"] is None else row["steps"]
                left.plot(steps, short, **style)
                right.plot(steps * 1e3 * row["seconds"] / max(timed, 1), short, **style)
            for axis in (left, right):
                axis.axhline(allowed, color=GREY, linewidth=0.8, linestyle="--", label=r"target, $10^{-8}|F^\star|$")
                axis.set(xscale="log", yscale="log", ylim=(allowed / 30, 3 * (top - case["F_start"])))
            left.set_title(rf"({next(letters)}) {case['case']}, $\sigma$ = {case['sigma']:g}")
            right.set_title(f"({next(letters)}) Adam's best rate: {best.split()[1]}")
            left.set_ylabel(r"$F^\star - F$  (nats)")
        axes[-1, 0].set_xlabel("step, from 1 at the start")
        axes[-1, 1].set_xlabel("milliseconds, compiled")
        handles = {line.get_label(): line for line in axes[0, 1].get_lines()}
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3)
        figure.suptitle(r"Coordinate ascent (EM) and joint gradient ascent on the same $F(\mu, \gamma)$", fontsize=9.5)
    return figure
