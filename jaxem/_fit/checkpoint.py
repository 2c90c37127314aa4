"""A fit in progress, on disk: written whole or not at all, and read back to the bit.

A checkpoint is one `.npz` file: the arrays of a pytree, and a description of what they belong to. It is written to a
draft beside its destination, forced to disk, and renamed over it; whatever happens, the last complete one survives.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np

try:
    import fcntl
except ImportError:  # no Unix: there the draft of a killed process stays
    fcntl = None  # type: ignore[assignment]

FORMAT = 2
DRAFT = re.compile(r"[0-9a-f]{16}\.part")


# ---- where a checkpoint may lie


def path_of(name: str, value: Any) -> Path:
    """An argument as a path, or a ValueError."""
    try:
        text = os.fspath(value)
        if not isinstance(text, str) or not text or "\0" in text:
            raise TypeError
    except TypeError:
        got = f"{type(value).__name__} {value!r}"
        raise ValueError(f"{name}: must be the path of a file, a str or a pathlib.Path, got {got:.99}") from None
    return Path(text)


def obstacle(path: Path) -> str | None:
    """Why no checkpoint can be written there, or nothing. A symbolic link stands for what it points to."""
    target = Path(os.path.realpath(path))
    try:
        if not target.parent.is_dir() or not os.access(target.parent, os.W_OK | os.X_OK):
            return f"must be a file in a folder that exists and can be written to; make {target.parent}"
        mode = os.lstat(target).st_mode
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"cannot be a file: {error.strerror}; choose another name"
    if not stat.S_ISREG(mode):
        return (
            "must be a file in a folder that exists, and is something else: a folder, a device, a pipe; choose another"
        )
    if not mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH) or not os.access(target, os.W_OK):
        return "is read-only; make it writable, or choose another name"
    return None


def check_path(value: Any) -> Path:
    """The path of a checkpoint, or a ValueError before any work is done; drafts that a killed process left go."""
    path = path_of("checkpoint", value)
    if why := obstacle(path):
        raise ValueError(f"checkpoint: {path} {why}")
    sweep(Path(os.path.realpath(path)))
    return path


# ---- drafts: a name that nobody else has, locked by who writes it


def stem(path: Path) -> str:
    """What the names of its drafts begin with, short enough for any file system."""
    name = path.name if len(os.fsencode(path.name)) < 200 else hashlib.sha256(os.fsencode(path.name)).hexdigest()
    return f".{name}."


def lock(file: IO[bytes], wait: bool) -> None:
    """Hold a file until it is closed, or the process is gone; an OSError where that cannot be."""
    if fcntl is None:
        raise OSError("no locks")
    fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def sweep(path: Path) -> None:
    """Remove the drafts of this checkpoint that nobody holds."""
    for entry in os.scandir(path.parent):
        if not (entry.name.startswith(stem(path)) and DRAFT.fullmatch(entry.name.removeprefix(stem(path)))):
            continue
        with contextlib.suppress(OSError), open(entry.path, "rb") as file:
            lock(file, wait=False)
            os.unlink(entry.path)


@contextlib.contextmanager
def draft_of(path: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """A draft to write to, in the same folder, with the mode of the file that it will replace; gone at the end."""
    while True:
        draft = path.with_name(f"{stem(path)}{secrets.token_hex(8)}.part")
        file = os.fdopen(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666), "wb")
        with contextlib.suppress(OSError):  # a file system without locks: nobody sweeps there either
            lock(file, wait=True)
        if draft.exists():
            break
        file.close()  # swept in between
    try:
        with file:
            with contextlib.suppress(OSError):
                os.chmod(draft, stat.S_IMODE(path.stat().st_mode))
            yield draft, file
    finally:
        draft.unlink(missing_ok=True)  # it is there only if something went wrong


def save(path: Path, tree: Any, description: dict[str, Any]) -> None:
    """Write the arrays of a tree and their description.

    Raises:
        OSError: when it cannot be written; what was at `path` is still there.
    """
    leaves = {f"leaf_{index}": np.asarray(leaf) for index, leaf in enumerate(jax.tree.leaves(tree))}
    write(path, leaves, description | {"format": FORMAT})


def write(path: Path, arrays: dict[str, np.ndarray], description: dict[str, Any], what: str = "checkpoint") -> None:
    """Write arrays by name and, as UTF-8 text, a description; `what` begins an error's message.

    Raises:
        OSError: when it cannot be written; what was at `path` is still there.
    """
    text = np.frombuffer(json.dumps(description).encode(), np.uint8)
    target = Path(os.path.realpath(path))
    try:
        if why := obstacle(path):
            raise OSError(errno.EACCES, f"it {why}")
        with draft_of(target) as (draft, file):
            np.savez(file, **(arrays | {"description": text}))  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
            os.replace(draft, target)
    except OSError as error:
        kept = "; the last complete one is still there" if target.is_file() else ""
        raise OSError(error.errno, f"{what}: cannot write {path}: {error.strerror or error}{kept}") from error
    _sync_folder(target.parent)


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


# ---- reading one


def load(value: Any, like: Any, description: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The tree that was saved, in the structure of `like`, and its description.

    Raises:
        ValueError: for a file that is missing, truncated or no checkpoint, or whose description differs from the
            given one in any of its entries.
    """
    path = path_of("resume", value)
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for who writes to it
            raise ValueError(f"resume: {path} is no checkpoint, but a folder, a device or a pipe; use another")
    except FileNotFoundError as error:
        raise ValueError(f"resume: there is no {path}; leave resume out to start afresh") from error
    except OSError as error:
        raise ValueError(f"resume: {path} cannot be read: {error.strerror}; use another") from error
    try:
        with np.load(path) as stored:
            damaged = stored.zip.testzip()
            found = json.loads(bytes(stored["description"]))
            leaves = [stored[f"leaf_{index}"] for index in range(len(stored.files) - 1)]
        if damaged or not isinstance(found, dict):
            raise ValueError(damaged)
    except Exception as error:  # damage shows itself in many ways
        raise ValueError(f"resume: {path} is no checkpoint, or only a part of one; use another") from error
    if found.get("format") != FORMAT:
        raise ValueError(
            f"resume: {path} has format {told(found.get('format'))}, this jaxem reads {FORMAT}; start afresh"
        )
    for name, here in json.loads(json.dumps(description)).items():
        if found.get(name) != here:
            where, stored, here = _first_difference(name, found.get(name), here)
            raise ValueError(
                f"resume: {path} belongs to another fit: its {where} is {told(stored)}, here it is {told(here)}; "
                "resume with what it was made with, or start afresh"
            )
    expected, structure = jax.tree.flatten(like)
    if [(leaf.shape, leaf.dtype) for leaf in leaves] != [(leaf.shape, leaf.dtype) for leaf in expected]:
        raise ValueError(f"resume: {path} holds arrays of other shapes or dtypes than this fit's; start afresh")
    return jax.tree.unflatten(structure, leaves), found


def told(value: Any) -> str:
    """For a message: in one line, and not all of it."""
    return f"{' '.join(str(value).split()):.200}"


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
