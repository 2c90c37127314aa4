"""Claims, provenance, and results that are complete or absent."""

import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np


class Claim(NamedTuple):
    """One statement, the worst value measured for it, and the bound it must not exceed."""

    id: str
    statement: str
    worst: float
    bound: float

    @property
    def holds(self) -> bool:
        """worst ≤ bound; False for NaN."""
        return bool(self.worst <= self.bound)

    def as_json(self) -> dict[str, Any]:
        return self._asdict() | {"holds": self.holds}


def provenance() -> dict[str, Any]:
    """Which program on which machine made a result."""
    packages = ("jaxem", "jax", "jaxlib", "numpyro", "optax", "funsor", "numpy", "scikit-learn", "matplotlib")
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "device": jax.devices()[0].device_kind,
        "versions": versions,
    }


def as_json(value: Any) -> str:
    """JSON with arrays as lists and non-finite numbers as null, which is all that JSON can say of them."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(v) for key, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        if isinstance(value, (np.ndarray, np.generic, jax.Array)):
            return plain(np.asarray(value).tolist())
        if isinstance(value, float) and not np.isfinite(value):
            return None
        return value

    return json.dumps(plain(value), indent=1, allow_nan=False) + "\n"


@contextmanager
def written_together(folder: Path) -> Iterator[Callable[[str, Callable[[Path], Any]], None]]:
    """Collect files under temporary names; rename all of them when the block ends, none if it fails.

    Each file is whole or absent. A process killed among the renamings leaves files of two runs: the JSON, renamed
    last, tells the digests of the others in its `provenance`, and `is_one_run` says whether they are those.

    >>> import pathlib, tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> with written_together(folder) as write:
    ...     write("a.txt", lambda path: path.write_text("whole"))
    >>> [path.name for path in folder.iterdir()]
    ['a.txt']
    """
    sweep(folder)
    with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=folder) as partial, held(Path(partial)):
        names: list[str] = []

        def write(name: str, save: Callable[[Path], Any]) -> None:
            save(Path(partial) / name)
            names.append(name)

        yield write
        names.sort(key=lambda name: name.endswith(".json"))
        digests = {name: sha256(Path(partial) / name) for name in names if not name.endswith(".json")}
        for name in names:
            if name.endswith(".json"):
                document = json.loads((Path(partial) / name).read_text(encoding="utf-8"))
                if isinstance(document, dict):
                    document["provenance"] = document.get("provenance", {}) | {"files": digests}
                    (Path(partial) / name).write_text(as_json(document), encoding="utf-8")
            os.replace(Path(partial) / name, folder / name)


PARTIAL = ".partial-"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def is_one_run(document: dict[str, Any], path: Path) -> bool:
    """Is the file beside a JSON the one that was written with it? One that tells no digest of it is believed."""
    told = document.get("provenance", {}).get("files", {}).get(path.name)
    return told is None or told == sha256(path)


@contextmanager
def held(folder: Path, wait: bool = True) -> Iterator[None]:
    """Lock a folder while this process lives; an OSError where another holds it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def sweep(folder: Path) -> None:
    """Remove what a killed process left half written: a folder that is older than a minute and that nobody holds."""
    for path in folder.glob(f"{PARTIAL}*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > 60:
                with held(path, wait=False):
                    shutil.rmtree(path)


def writable_folder(path: str) -> Path:
    """The folder, made if need be and proved writable, or an OSError."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        return folder


def print_claims(claims: list[Claim], file: Any = None) -> None:
    """A verdict per claim, with its worst value and its bound."""
    for claim in claims:
        verdict = "holds" if claim.holds else "FAILS"
        line = f"  {verdict}  {claim.id:<4} {claim.worst:9.2e} ≤ {claim.bound:8.2e}   {claim.statement}"
        print(line, file=file or sys.stdout)
