"""Flags that make XLA compile what runs once in a quarter of the time; asked for before JAX is imported."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

FLAGS = {
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
    "xla_backend_optimization_level": 1,
}
ASK = "import sys, jax; name, value = sys.argv[1:]; jax.jit(lambda: 0, compiler_options={name: eval(value)})()"


def is_known(name: str, value: bool | int) -> bool:
    """Does the jaxlib that runs here know a flag? In XLA_FLAGS it aborts at one that it does not; here it raises."""
    command = [sys.executable, "-c", ASK, name, str(value)]
    return not subprocess.run(command, capture_output=True, env=os.environ | {"JAX_PLATFORMS": "cpu"}).returncode


def known() -> str:
    """XLA_FLAGS; the jaxlib that constraints.txt pins is known to know them all, another is asked once."""
    if "XLA_FLAGS" in os.environ:  # a worker of pytest-xdist has them from the process that started it
        return os.environ["XLA_FLAGS"]
    pinned = (Path(__file__).parent.parent / "constraints.txt").read_text().splitlines()
    all_are = f"jaxlib=={importlib.metadata.version('jaxlib')}" in pinned
    kept = {name: value for name, value in FLAGS.items() if all_are or is_known(name, value)}
    return " ".join(f"--{name}={str(value).lower()}" for name, value in kept.items())
