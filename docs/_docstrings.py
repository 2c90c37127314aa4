"""griffe extension: what jaxem's sources say in ways that griffe does not read.

The comment behind a field of a class is its docstring, `theta: Theta  # (K, D)`; `a, b = …` assigns to a and to b; and
lines from `>>>` to the next blank one are code.
"""

import ast
import io
import re
import tokenize
from typing import Any

from griffe import Attribute, Docstring, Extension, Module, Object

EXAMPLE = re.compile(r"^( *)>>> .*(?:\n.*\S.*)*", re.MULTILINE)


def comments(source: str) -> dict[int, str]:
    """Line → the comment on it."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}


class Docstrings(Extension):
    """Fields by their comments, names by their tuples, examples as code."""

    def on_instance(self, *, obj: Object, **_: Any) -> None:
        """Examples, between fences."""
        if obj.docstring is not None:
            obj.docstring.value = EXAMPLE.sub(r"\1```pycon\n\g<0>\n\1```", obj.docstring.value)

    def on_attribute_instance(self, *, attr: Attribute, **_: Any) -> None:
        """A field without a docstring gets the comment on its line."""
        if attr.docstring is None and attr.lineno and attr.parent and attr.parent.is_class:
            said = comments("\n".join(attr.lines_collection[attr.filepath])).get(attr.endlineno or attr.lineno)
            if said:
                attr.docstring = Docstring(said, lineno=attr.lineno, endlineno=attr.lineno, parent=attr)

    def on_module_members(self, *, node: Any, mod: Module, **_: Any) -> None:
        """Each name of a tuple that is assigned to is a member."""
        lines = [line for line in getattr(node, "body", []) if isinstance(line, ast.Assign)]
        tuples = [target for line in lines for target in line.targets if isinstance(target, ast.Tuple)]
        for name in (name for target in tuples for name in target.elts):
            if isinstance(name, ast.Name) and name.id not in mod.members:
                mod.set_member(name.id, Attribute(name.id, lineno=name.lineno, endlineno=name.lineno, parent=mod))
