"""The command line's contract: help, version, exit status 2 and one line on bad input."""

from __future__ import annotations

import re

import pytest

from warmlane import __version__
from warmlane.router.cli import COMMANDS, main


def run(*words: str) -> int:
    try:
        return main(list(words))
    except SystemExit as stop:
        return int(stop.code or 0)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"warmlane {__version__}\n"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    text = capsys.readouterr().out
    for name in COMMANDS:
        assert re.search(rf"^  {name}\s", text, re.M)


@pytest.mark.parametrize("words", [["nonsense"], ["--nonsense"]])
def test_bad_word_is_one_line_and_status_2(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "warmlane: " in error


def test_no_words_prints_help_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 2
    assert "commands:" in capsys.readouterr().err
