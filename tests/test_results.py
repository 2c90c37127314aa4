"""Results are written whole or not at all, and files of two runs are told apart."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

import _results

KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import _results
rename = os.replace
def replace(*paths):
    rename(*paths)
    os.kill(os.getpid(), signal.SIGKILL)
with _results.written_together(Path(sys.argv[2])) as write:
    write("a.json", lambda path: path.write_text('{"run": 2}'))
    write("a.npz", lambda path: path.write_text("two"))
    os.replace = replace
"""


def write_all(folder, text, fails=False):
    with _results.written_together(folder) as write:
        write("a.json", lambda path: path.write_text(json.dumps({"run": text})))
        write("a.npz", lambda path: path.write_text(text))
        if fails:
            raise RuntimeError


def told(folder):
    document = json.loads((folder / "a.json").read_text())
    return document["run"], _results.is_one_run(document, folder / "a.npz")


def test_all_or_none(tmp_path):
    with pytest.raises(RuntimeError):
        write_all(tmp_path, "one", fails=True)
    assert not list(tmp_path.iterdir())
    write_all(tmp_path, "one")
    with pytest.raises(RuntimeError):
        write_all(tmp_path, "two", fails=True)
    assert told(tmp_path) == ("one", True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.npz"]


def test_killed_among_the_renamings_the_files_are_known_to_be_of_two_runs(tmp_path):
    write_all(tmp_path, "one")
    folder = os.path.dirname(_results.__file__)
    done = subprocess.run([sys.executable, "-c", KILLED, folder, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert told(tmp_path) == ("one", False)
    (left,) = tmp_path.glob(".partial-*")
    write_all(tmp_path, "three")
    assert left.exists()  # it may be somebody's who has just begun
    os.utime(left, (time.time() - 100, time.time() - 100))
    with _results.held(left):
        write_all(tmp_path, "three")
    assert left.exists()
    os.utime(left, (time.time() - 100, time.time() - 100))
    write_all(tmp_path, "four")
    assert not left.exists()
    assert told(tmp_path) == ("four", True)
