"""mkdocs hook: pages and figures that live elsewhere in the repository, and links that are paths in it.

A page links as on a forge, by relative paths between files of the repository; here they become links of the site.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
ELSEWHERE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "experiments/DISTRIBUTED.md": "clusters.md",
    "experiments/GPU.md": "gpu.md",
    "experiments/SPEED.md": "speed.md",
} | {f"paper_figures/{path.name}": f"figures/{path.name}" for path in sorted(ROOT.glob("paper_figures/*.png"))}
SOURCE = {place: source for source, place in ELSEWHERE.items()}
LINK = re.compile(r"(?<=\]\()[^)\s#:]+(?=[)#])")


def on_files(files: Files, config: Any) -> Files:
    """Files from elsewhere join those of docs/."""
    for source, place in ELSEWHERE.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links between files of the repository, as links between files of the site."""
    here = page.file.src_uri
    source = SOURCE.get(here, f"docs/{here}")

    def moved(link: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[0]))
        place = ELSEWHERE.get(target) or (target.removeprefix("docs/") if target.startswith("docs/") else None)
        return posixpath.relpath(place, posixpath.dirname(here) or ".") if place else link[0]

    return LINK.sub(moved, markdown)
