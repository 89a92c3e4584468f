"""`warmlane` commands before real engines, as a user starts them."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp

from .engines import fetch
from .talks import prose

COMMAND_S = 120


def command(*words: str) -> subprocess.Popen[str]:
    """Started, with its outputs to be read."""
    return subprocess.Popen(
        [sys.executable, "-m", "warmlane", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONSAFEPATH": "1"},
    )


def finished(process: subprocess.Popen[str]) -> tuple[int, Any]:
    """Exit status and the object that it printed."""
    out, errors = process.communicate(timeout=COMMAND_S)
    assert out, errors
    return process.returncode, json.loads(out)


def doctor(*words: str) -> tuple[int, dict[tuple[str, str], dict[str, str]]]:
    """Exit status, and the lines by replica and check."""
    status, found = finished(command("doctor", "--json", "--timeout", "30", *words))
    return status, {(line["replica"], line["check"]): line for line in found["lines"]}


def prompts(count: int, words: int, seed: int) -> list[str]:
    """Texts without a common beginning."""
    return [prose(random.Random(seed * 1000 + number), words) for number in range(count)]


async def _ask(url: str, texts: Sequence[str], at_once: int) -> list[dict[str, Any]]:
    gate = asyncio.Semaphore(at_once)
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(timeout=timeout) as client:

        async def one(text: str) -> dict[str, Any]:
            body = {"model": "tiny", "prompt": text, "max_tokens": 1, "temperature": 0}
            async with gate, client.post(f"{url}/v1/completions", json=body) as answer:
                assert answer.status == 200, await answer.text()
                usage: dict[str, Any] = (await answer.json())["usage"]
                return usage

        return await asyncio.gather(*(one(text) for text in texts))


def complete(url: str, texts: Sequence[str], at_once: int = 1) -> list[dict[str, Any]]:
    """One token for each; their usages."""
    return asyncio.run(_ask(url, texts, at_once))


def scrapes(log: Path) -> int:
    """How often an engine's metrics were read, by its own log."""
    return log.read_text(errors="replace").count("GET /metrics")


def with_other_merges(folder: Path, to: Path) -> Path:
    """A model folder whose tokenizer makes other ids of the same text."""
    return _copied(folder, to, "tokenizer.json", _fewer_merges)


def with_other_template(folder: Path, to: Path) -> Path:
    """A model folder whose chats are rendered otherwise."""
    return _copied(folder, to, "tokenizer_config.json", _other_template)


def _copied(folder: Path, to: Path, name: str, change: Any) -> Path:
    to.mkdir()
    for each in ("tokenizer.json", "tokenizer_config.json"):
        data = json.loads((folder / each).read_text())
        if each == name:
            change(data)
        (to / each).write_text(json.dumps(data))
    return to


def _fewer_merges(data: dict[str, Any]) -> None:
    del data["model"]["merges"][200:]


def _other_template(data: dict[str, Any]) -> None:
    data["chat_template"] = data["chat_template"].replace("assistant", "bot")


def computed(url: str) -> float:
    """Prompt tokens that the engine computed, by its own counter."""
    text = fetch(f"{url}/metrics").decode()
    family = "vllm:prompt_tokens_by_source_total"
    rows = [line for line in text.splitlines() if line.startswith(family)]
    return sum(float(row.rpartition(" ")[2]) for row in rows if 'source="local_compute"' in row)
