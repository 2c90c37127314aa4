"""The names of a scan's sites: NumPyro's, of the steps before."""

PREVIOUS = "_PREV_"  # NumPyro's name for the step before, of a variable inside a scan


def steps_back(name: str) -> int:
    """How many steps before the one at hand, or, of a site that is unrolled, before the first that is not."""
    return 0 if not name.startswith(PREVIOUS) else 1 + steps_back(name.removeprefix(PREVIOUS))


def root(name: str) -> str:
    """The name of a scan's site without its `_PREV_`s."""
    return name[len(PREVIOUS) * steps_back(name) :]
