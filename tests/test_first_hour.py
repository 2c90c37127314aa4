"""docs/first_hour.md runs, block by block, in a process of its own: it is a user's."""

import re
import subprocess
import sys

from conftest import AS_A_USER, ROOT


def test_the_pages_blocks_run(tmp_path):
    page = (ROOT / "docs" / "first_hour.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(blocks) == 7
    program = tmp_path / "page.py"
    program.write_text("\n".join(blocks))
    environment = {name: value for name, value in AS_A_USER.items() if name != "JAX_ENABLE_X64"}
    done = subprocess.run([sys.executable, program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown = re.findall(r"```text\n(.*?)```", page, flags=re.DOTALL)
    for text in shown:  # what the page prints is what is printed
        assert text in done.stdout, done.stdout
