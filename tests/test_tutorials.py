"""Every tutorial runs alone, as a new user would run it."""

import subprocess
import sys
from pathlib import Path

import pytest

TUTORIALS = sorted((Path(__file__).parents[1] / "tutorials").glob("*.py"))


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda p: p.stem)
def test_a_tutorial_runs_alone(path, tmp_path):
    done = subprocess.run([sys.executable, path, "--smoke"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "# %%" in path.read_text()


def test_there_are_tutorials():
    assert TUTORIALS
