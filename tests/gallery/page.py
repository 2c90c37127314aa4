"""The gallery as a page: `cd tests && JAX_ENABLE_X64=1 python -m gallery.page` writes docs/programs.md anew."""

from pathlib import Path
from types import ModuleType

import jax

import jaxem

from gallery import ENTRIES, PENDING, THEMES
from gallery.registry import Entry

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "programs.md"
COMMAND = "cd tests && JAX_ENABLE_X64=1 python -m gallery.page"

HEAD = f"""# Programs that run unchanged

Programs that people publish, each in a transcription of our own on a few rows of data (`tests/gallery`). Of every one
that runs, `tests/test_gallery.py` checks that F at T = 1, ½ and 0 is NumPyro's own density summed over every
assignment of its discrete latents; that marginals and `decode` are what those assignments say; that a fit never lowers
F, stays inside every constraint, and is called CONVERGED only where the density is stationary. A refusal is one line
that names the cause.

Updates: **formula**, a closed form or weighted least squares; **climbs**, Newton's or gradient steps on Q;
`m.explain(theta, x)` says why. The page is written by `{COMMAND}`.
"""
COLUMNS = "| program | what it is | where its kind is published | updates |\n|---|---|---|---|\n"


def verdict(name: str, entry: Entry) -> str:
    """What becomes of it: the update of every parameter, or why it is refused."""
    if name in PENDING:
        return f"not yet: {PENDING[name]}"
    m = jaxem.from_numpyro(entry.program)
    try:
        theta = entry.theta or m.init(jax.random.key(0), entry.x)
        said = m.explain(theta, entry.x)
        if entry.refusal:
            jaxem.em(m, theta, entry.x, max_steps=0)
    except ValueError as refused:
        return shortened(refused)
    return updates(said)


def shortened(refused: Exception) -> str:
    """The line that refuses it, for a cell of a table."""
    return "refused: " + str(refused).removeprefix("program: ").replace("|", "\\|")


def is_formula(why: str) -> bool:
    """Does explain say so of a parameter?"""
    return why.startswith(("closed form", "weighted least squares"))


def updates(said: dict[str, str]) -> str:
    """explain's words, shortened."""
    climbs = [name for name, why in said.items() if not is_formula(why)]
    formula = [name for name in said if name not in climbs]
    kinds = {"formula": formula, "climbs": climbs}
    listed = [f"{kind}: " + ", ".join(f"`{name}`" for name in names) for kind, names in kinds.items() if names]
    return "; ".join(listed) or "no parameter"


def row(name: str, entry: Entry, said: str) -> str:
    return f"| `{name}` | {entry.about} | {entry.source} | {said} |"


def section(theme: ModuleType) -> str:
    """One theme: its first line, and a row for each of its programs."""
    title = str(theme.__doc__).strip().splitlines()[0].rstrip(".")
    name = theme.__name__.rsplit(".", 1)[-1]
    rows = [row(n, entry, verdict(n, entry)) for n, entry in ENTRIES.items() if entry.theme == name]
    return f"\n## {title}\n\n{COLUMNS}" + "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(HEAD + "".join(section(theme) for theme in THEMES), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {len(ENTRIES)} programs")
