"""The public types, as a user's mypy sees them."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
SRC = HERE.parents[1] / "src"


def mypy(name: str, cache: Path) -> tuple[int, str]:
    if find_spec("mypy") is None:
        pytest.skip("mypy is not installed: `pip install .[lint]`")
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(cache)]
    command += ["--config-file", "", str(HERE / name)]
    environment = {"MYPYPATH": str(SRC), "PATH": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    return done.returncode, done.stdout + done.stderr


def test_a_users_program_is_accepted(tmp_path: Path) -> None:
    code, output = mypy("public_face.py", tmp_path)
    assert code == 0, output


def test_a_users_mistakes_are_refused(tmp_path: Path) -> None:
    code, output = mypy("refused.py", tmp_path)
    assert code == 1, output
    found = set(re.findall(r"refused\.py:(\d+): error: .*\[([a-z-]+)\]", output))
    lines = (HERE / "refused.py").read_text().splitlines()
    marked = [(number, re.search(r"# E: (\S+)", line)) for number, line in enumerate(lines, 1)]
    assert found == {(str(number), mark[1]) for number, mark in marked if mark}, output
