"""The documentation does what it says: quick starts run as written, links lead somewhere.

A block of README.md below `<!-- run: NAME -->` or `<!-- check: NAME -->` is taken as it stands;
only port numbers are replaced by free ones.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BIN = Path(sys.executable).parent
ANSWER_S = 90


def block(name: str) -> str:
    match = re.search(rf"<!-- (?:run|check): {name} -->\n```\w+\n(.*?)```", README, re.S)
    assert match, f"README.md has no block named {name}"
    return match[1]


def environment() -> dict[str, str]:
    keep = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return keep | {"PATH": path, "PYTHONPATH": str(ROOT / "src"), "PYTHONSAFEPATH": "1"}


def test_the_standalone_quick_start_answers(tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed: the quick start cannot be run as written")
    if not (BIN / "warmlane").exists():
        pytest.skip("the package is not installed here: `make test` runs this")
    text = block("standalone")
    for port in sorted(set(re.findall(r"\b80\d\d\b", text))):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            text = text.replace(port, str(probe.getsockname()[1]))
    # the admin port is a default that the text does not name
    text = text.replace("warmlane serve ", "warmlane serve --admin-port 0 ")
    errors = tmp_path / "stderr"
    with errors.open("wb") as err:
        process = subprocess.Popen(
            ["bash", "-c", text],
            cwd=tmp_path,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=err,
            start_new_session=True,
        )
    try:
        assert process.stdout is not None
        answer = read_answer(process.stdout.fileno(), errors)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=30)
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "demo"
    assert answer["usage"]["completion_tokens"] == 8


def read_answer(fd: int, errors: Path) -> dict[str, object]:
    """The line of JSON that curl prints, whatever the servers print around it."""
    seen = b""
    deadline = time.monotonic() + ANSWER_S
    while (left := deadline - time.monotonic()) > 0 and select.select([fd], [], [], left)[0]:
        chunk = os.read(fd, 65536)
        seen += chunk
        for line in seen.splitlines():
            if line.startswith(b'{"id"') and line.endswith(b"}"):
                value: dict[str, object] = json.loads(line)
                return value
        if not chunk:
            break
    pytest.fail(f"no answer came:\n{seen.decode()}\n{errors.read_text()[-3000:]}")


def test_the_library_example_runs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", block("library")],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    first, second = (line.split() for line in done.stdout.splitlines())
    assert first[1] == "0" and int(second[1]) > 100


def test_the_config_example_is_valid(tmp_path: Path) -> None:
    config = tmp_path / "router.yaml"
    config.write_text(block("config"))
    done = subprocess.run(
        [sys.executable, "-m", "warmlane", "check-config", str(config)],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "coder.internal" in done.stdout


def test_the_benchmark_table_is_the_committed_result() -> None:
    results = ROOT / "benchmarks" / "results" / "proxy.json"
    sys.path.insert(0, str(ROOT))
    try:
        table = importlib.import_module("benchmarks.table")
    finally:
        sys.path.remove(str(ROOT))
    assert table.filled(README, json.loads(results.read_text())) == README


def test_the_commands_of_make_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.M))
    for page in ("README.md", "CONTRIBUTING.md"):
        named = set(re.findall(r"`make ([a-z-]+)", (ROOT / page).read_text()))
        assert named - targets == set(), page


def pages() -> list[Path]:
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / line for line in done.stdout.splitlines() if (ROOT / line).exists()]


def test_links_between_pages_lead_somewhere() -> None:
    wrong = []
    for page in pages():
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target and not (page.parent / target).exists():
                wrong.append(f"{page.relative_to(ROOT)} -> {target}")
    assert wrong == []
