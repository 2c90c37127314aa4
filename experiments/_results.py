"""Claims, provenance, and results that are complete or absent."""

import importlib.metadata
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

    >>> import pathlib, tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> with written_together(folder) as write:
    ...     write("a.txt", lambda path: path.write_text("whole"))
    >>> [path.name for path in folder.iterdir()]
    ['a.txt']
    """
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as partial:
        names: list[str] = []

        def write(name: str, save: Callable[[Path], Any]) -> None:
            save(Path(partial) / name)
            names.append(name)

        yield write
        for name in names:
            os.replace(Path(partial) / name, folder / name)


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
