"""The README's Python blocks run, in order, as a newcomer would run them."""

import subprocess
import sys

import pages
from conftest import AS_A_USER

README = pages.ROOT / "README.md"


def test_the_readmes_blocks_run(tmp_path):
    program = tmp_path / "readme.py"
    assert pages.blocks(README)
    program.write_text("\n".join(pages.blocks(README)), encoding="utf-8")
    environment = {name: value for name, value in AS_A_USER.items() if name != "JAX_ENABLE_X64"}
    done = subprocess.run([sys.executable, program], cwd=pages.ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_it_is_one_screen():
    assert len(pages.text(README).splitlines()) <= 120
