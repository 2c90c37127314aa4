"""The pages of the documentation: README, docs/, and what of the repository the site shows besides."""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
ALSO = [*ROOT.glob("*.md"), *ROOT.glob("experiments/*.md")]
PAGES = sorted(ALSO) + sorted((ROOT / "docs").rglob("*.md"))


def name_of(page: Path) -> str:
    """Its path in the repository."""
    return page.relative_to(ROOT).as_posix()


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path) -> list[str]:
    """Its ```python blocks, each behind as many empty lines as stand before it: errors name the page's lines."""
    found = re.finditer(r"^```python\n(.*?)^```", text(page), flags=re.DOTALL | re.MULTILINE)
    return ["\n" * text(page)[: block.start(1)].count("\n") + block[1] for block in found]


def run(page: Path) -> dict[str, Any]:
    """The names that its blocks define, run in order in one namespace."""
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page):
        exec(compile(block, name_of(page), "exec"), names)
    return names


def links(page: Path) -> list[str]:
    """What it links to in the repository, as it writes it, without anchors."""
    prose = re.sub(r"^```.*?^```", "", text(page), flags=re.DOTALL | re.MULTILINE)
    targets = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose))
    return [target.split("#")[0] for target in targets if "://" not in target and not target.startswith("#")]
