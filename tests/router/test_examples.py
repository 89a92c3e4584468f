"""Examples and the code in the documentation run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from warmlane.scorers import BUILTIN, DEFAULT_MIX

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
USE = """
from warmlane import Router
from warmlane.router.config_load import load
router = Router(load("router.yaml"))
with router.route(model="m", prompt="hello " * 500) as route:
    print(route.replica.name, repr(route.decision.fallback))
"""


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{cwd}", "PATH": os.environ["PATH"]}
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(path: Path, tmp_path: Path) -> None:
    done = python(str(path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_readme_names_every_example() -> None:
    named = set(re.findall(r"`(\w+\.py)`", (ROOT / "examples" / "README.md").read_text()))
    assert named == {path.name for path in EXAMPLES}


def test_the_scorer_of_the_documentation(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "write_a_scorer.md").read_text()
    files = dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", text, re.S))
    assert set(files) == {"price.py", "router.yaml"}
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    checked = python("-m", "warmlane", "check-config", "router.yaml", cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr
    used = python("-c", USE, cwd=tmp_path)
    assert used.stdout == "10.0.0.2:8000 ''\n", used.stderr
    wrong = files["router.yaml"].replace("most:", "mots:")
    (tmp_path / "router.yaml").write_text(wrong)
    refused = python("-m", "warmlane", "check-config", "router.yaml", cwd=tmp_path)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "mots" in refused.stderr and "'most'" in refused.stderr


def test_the_table_of_scorers_is_the_code() -> None:
    text = (ROOT / "scorers" / "README.md").read_text()
    found = re.findall(r"^\| `(\w+)` \|.*\|([^|]*)\|$", text, re.M)
    rows = {name: cell.strip() for name, cell in found}
    assert set(rows) == set(BUILTIN)
    for part in DEFAULT_MIX:
        assert isinstance(part, dict)
        assert rows[part["name"]] == f"weight {part['weight']:g}"
    mixed = {part["name"] for part in DEFAULT_MIX if isinstance(part, dict)}
    assert all(rows[name] == "" for name in set(BUILTIN) - mixed)
