"""The container image, as far as it can be judged without an engine that builds it."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KNOWN = {"FROM", "RUN", "WORKDIR", "COPY", "ENV", "USER", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK"}
KNOWN |= {"ENTRYPOINT"}


def stages() -> list[list[tuple[str, str]]]:
    """Instructions by stage, continued lines joined, comments gone."""
    lines = (ROOT / "deploy" / "Dockerfile").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#"))
    found: list[list[tuple[str, str]]] = []
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if line.strip():
            word, rest = line.split(None, 1)
            if word == "FROM":
                found.append([])
            found[-1].append((word, rest.strip()))
    return found


def test_two_stages_and_known_instructions() -> None:
    build, final = stages()
    assert {word for stage in (build, final) for word, _ in stage} <= KNOWN
    assert build[0][1].endswith(" AS build")
    assert "gcc" in str(build) and "gcc" not in str(final)  # no compiler in the image


def test_it_does_not_run_as_root() -> None:
    final = dict(stages()[-1])
    assert int(final["USER"]) >= 1000  # a number: Kubernetes can check that it is not root


def test_what_it_copies_is_there_and_enough() -> None:
    build, final = stages()
    sources = [
        source for word, rest in build if word == "COPY" for source in shlex.split(rest)[:-1]
    ]
    assert [name for name in sources if not (ROOT / name).exists()] == []
    links = {path.resolve().name for path in (ROOT / "src" / "warmlane").iterdir() if path.is_dir()}
    needed = (links - {"__pycache__"}) | {
        "src",
        "pyproject.toml",
        "setup.py",
        "LICENSE",
        "README.md",
    }
    assert needed <= set(sources)
    assert all(rest.startswith("--from=build") for word, rest in final if word == "COPY")


def test_its_command_line_is_ours() -> None:
    words = json.loads(dict(stages()[-1])["ENTRYPOINT"])
    assert words[:2] == ["warmlane", "serve"]
    command = [sys.executable, "-m", "warmlane", "serve", "--help"]
    said = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60).stdout
    for word in words[2:]:
        if word.startswith("--"):
            assert word in said
