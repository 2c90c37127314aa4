"""A fit in progress, on disk: written whole or not at all, and read back to the bit.

A checkpoint is one `.npz` file: the arrays of a pytree, and a description of what they belong to. It is written
beside its destination, forced to disk, and renamed over it; whatever happens, the last complete one survives.
"""

import dataclasses
import functools
import json
import os
import types
from pathlib import Path
from typing import Any

import jax
import numpy as np

FORMAT = 2


def identity(value: Any) -> Any:
    """What a model is made of, by name, the same in every process: functions, partials and frozen dataclasses."""
    if isinstance(value, types.MethodType):
        return [identity(value.__func__), identity(value.__self__)]
    if isinstance(value, functools.partial):
        return [identity(value.func), identity(value.args), identity(value.keywords)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: identity(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return [type(value).__qualname__, fields]
    if callable(value):
        named = value if hasattr(value, "__qualname__") else type(value)
        return f"{named.__module__}.{named.__qualname__}"
    if isinstance(value, dict):
        return {str(key): identity(entry) for key, entry in value.items()}
    if isinstance(value, frozenset | set):
        return sorted(map(str, value))
    if isinstance(value, tuple | list):
        return [identity(entry) for entry in value]
    return value if isinstance(value, str | int | float | bool | None) else repr(value)


def check_path(path: str | os.PathLike) -> None:
    """A ValueError, before any work is done, where there is no folder to write to."""
    path = Path(path)
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"checkpoint: {path} must be a file in a folder that exists; make {path.parent}")


def save(path: str | os.PathLike, tree: Any, description: dict[str, Any]) -> None:
    """Write the arrays of a tree and their description.

    Raises:
        OSError: when it cannot be written; what was at `path` is still there.
    """
    path = Path(path)
    leaves = {f"leaf_{index}": np.asarray(leaf) for index, leaf in enumerate(jax.tree.leaves(tree))}
    text = np.frombuffer(json.dumps(description | {"format": FORMAT}).encode(), np.uint8)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(draft, "wb") as file:
            np.savez(file, **(leaves | {"description": text}))  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        kept = "; the last complete one is still there" if path.exists() else ""
        raise OSError(error.errno, f"checkpoint: cannot write {path}: {error.strerror or error}{kept}") from error
    finally:
        draft.unlink(missing_ok=True)  # it is there only if something went wrong
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Force the renaming to disk, where the system lets a folder be opened."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load(path: str | os.PathLike, like: Any, description: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The tree that was saved, in the structure of `like`, and its description.

    Raises:
        ValueError: for a file that is missing, truncated or no checkpoint, or whose description differs from the
            given one in any of its entries.
    """
    try:
        with np.load(path) as stored:
            if damaged := stored.zip.testzip():
                raise ValueError(f"{damaged} is damaged")
            found = json.loads(bytes(stored["description"]))
            leaves = [stored[f"leaf_{index}"] for index in range(len(stored.files) - 1)]
    except FileNotFoundError as error:
        raise ValueError(f"resume: there is no {path}; leave resume out to start afresh") from error
    except Exception as error:  # damage shows itself in many ways
        raise ValueError(f"resume: {path} is no checkpoint, or only a part of one ({error}); use another") from error
    if found.get("format") != FORMAT:
        raise ValueError(f"resume: {path} has format {found.get('format')}, this jaxem reads {FORMAT}; start afresh")
    for name, here in json.loads(json.dumps(description)).items():
        if found.get(name) != here:
            where, stored, here = _first_difference(name, found.get(name), here)
            raise ValueError(
                f"resume: {path} belongs to another fit: its {where} is {stored}, here it is {here}; "
                "resume with what it was made with, or start afresh"
            )
    expected, structure = jax.tree.flatten(like)
    if [leaf.shape for leaf in leaves] != [leaf.shape for leaf in expected]:
        raise ValueError(f"resume: {path} holds arrays of other shapes; its θ has another K or D than this one")
    return jax.tree.unflatten(structure, leaves), found


def _first_difference(name: str, stored: Any, here: Any) -> tuple[str, Any, Any]:
    """Where two descriptions differ, for a message."""
    if isinstance(stored, list) and isinstance(here, list) and len(stored) == len(here):
        for pair in zip(stored, here, strict=True):
            if pair[0] != pair[1]:
                return _first_difference(name, *pair)
    if isinstance(stored, dict) and isinstance(here, dict):
        for key in sorted(stored.keys() | here.keys()):
            if stored.get(key) != here.get(key):
                return _first_difference(f"{name}'s {key}", stored.get(key), here.get(key))
    return name, stored, here
