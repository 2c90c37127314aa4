"""Whose turn it is: a statement about every family, program, page or experiment is run on a sixth of them each time.

Each instance of such a statement is a program to trace and compile, some seconds of it, and there are a thousand. The
float64 leg takes turn 0 and the float32 leg turn 1, so that of what is stated in both they come past a third of the
pairs (statement, family), and of what float64 alone states (`collect_ignore` in conftest.py) past a sixth; JAXEM_TURN=2
… 5 are the other turns, and JAXEM_TURN=all (`make test-all`) is everything. Turns go round by statement: every
statement keeps at least one family, and every family a sixth of the statements.

Families are the parameter `case`; of a test that is marked `takes_turns("name")`, the values of its parameter `name`,
and `takes_turns("*")` all its instances.
"""

import collections
import os
import zlib
from typing import Any

ROUND = 6
FEW = 2  # so few are all taken
TURN = os.environ.get("JAXEM_TURN") or ("1" if os.environ.get("JAXEM_TEST_PRECISION") == "32" else "0")


def taken(names: list[Any], statement: str, turn: str = TURN) -> set[Any]:
    """Those of the names whose turn it is to have the statement made of them."""
    if turn == "all" or len(names) <= FEW:
        return set(names)
    first, every = zlib.crc32(statement.encode()) + int(turn), min(ROUND, len(names))
    return {name for place, name in enumerate(names) if (place + first) % every == 0}


def _named(item: Any) -> tuple[Any, Any] | None:
    """((file, test), the name of the family or program that this instance is of), if it is of one."""
    values = item.callspec.params if hasattr(item, "callspec") else {}
    marked = item.get_closest_marker("takes_turns")
    for parameter in (*(marked.args if marked else ()), "case"):
        if parameter == "*" and values:
            return (item.path, item.originalname), item.callspec.id
        if parameter in values:
            return (item.path, item.originalname), getattr(values[parameter], "name", values[parameter])
    return None


def out_of_turn(items: list[Any]) -> list[Any]:
    """Of the collected tests, those that are not run."""
    found = [_named(item) for item in items]
    names = collections.defaultdict(dict)  # statement -> its names, in order
    for statement, name in filter(None, found):
        names[statement][name] = None
    chosen = {statement: taken(list(names[statement]), statement[1]) for statement in names}
    return [item for item, of in zip(items, found, strict=True) if of and of[1] not in chosen[of[0]]]
