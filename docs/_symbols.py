"""mkdocs hook: indices and exponents are set in prose, γ_nk and e^{−d/2}; code stays as it is."""

import re
from typing import Any

LITERAL = re.compile(r"(<(pre|code|style|script)\b.*?</\2>|<[^>]+>)", re.DOTALL)
LETTER = "[A-Za-zα-ωΑ-Ωℓ∇∂]|min|max|mean|argmax|argmin|softmax"
SUBSCRIPT = re.compile(rf"(?<![A-Za-z_])({LETTER})_([A-Za-zα-ω0-9]{{1,8}})(?![A-Za-z0-9_])")
BRACED = re.compile(r"([_^])\{([^{}]*)\}")
POWER = re.compile(r"\^(\w+)")


def typeset(prose: str) -> str:
    """Text without tags, its indices and exponents as tags.

    >>> typeset("γ_nk = e^{ℓ_nk}, ρ^t, jaxem.em_batch")
    'γ<sub>nk</sub> = e<sup>ℓ<sub>nk</sub></sup>, ρ<sup>t</sup>, jaxem.em_batch'
    """
    prose = SUBSCRIPT.sub(r"\1<sub>\2</sub>", prose)
    prose = BRACED.sub(lambda found: tagged("sub" if found[1] == "_" else "sup", found[2]), prose)
    return POWER.sub(r"<sup>\1</sup>", prose)


def tagged(tag: str, text: str) -> str:
    return f"<{tag}>{text}</{tag}>"


def on_page_content(html: str, **_: Any) -> str:
    """Every piece of text between tags, but for code."""
    parts = LITERAL.split(html)  # text, tag, tag's name, text, …
    return "".join(typeset(part) if place % 3 == 0 else part for place, part in enumerate(parts) if place % 3 != 2)
