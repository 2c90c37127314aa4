"""The README's Python blocks run, in order, as a newcomer would run them."""

import re
import subprocess
import sys
from pathlib import Path

from conftest import AS_A_USER

ROOT = Path(__file__).parent.parent


def test_the_readmes_blocks_run(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert blocks
    program = tmp_path / "readme.py"
    program.write_text("\n".join(blocks))
    environment = {name: value for name, value in AS_A_USER.items() if name != "JAX_ENABLE_X64"}
    done = subprocess.run([sys.executable, program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_readmes_links_and_figures_exist():
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert (ROOT / target).exists(), target
