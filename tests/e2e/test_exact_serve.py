"""`warmlane serve --kv-events auto --tokenizer engine` before replicas that publish events.

Real processes, real ZMQ, real HTTP: the first turn is stored, the second is predicted to the block
from the replica's own events and the ids of its own tokenizer.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.vllm.engines import free_port

ROOT = Path(__file__).resolve().parents[2]
BLOCK = 16


@contextlib.contextmanager
def command(*words: str) -> Iterator[None]:
    env = {**os.environ, "PYTHONSAFEPATH": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "warmlane", *words],
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def fetch(url: str, body: dict[str, Any] | None = None) -> tuple[dict[str, str], bytes]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return {name.lower(): value for name, value in answer.headers.items()}, answer.read()


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            if condition():
                return
        time.sleep(0.1)
    pytest.fail("it did not come true in time")


def test_text_prompts_are_predicted_to_the_block() -> None:
    ports = [free_port() for _ in range(8)]
    port, admin = ports[6:]
    url = f"http://127.0.0.1:{port}"
    with contextlib.ExitStack() as stack:
        replicas: list[str] = []
        for number in range(2):
            http, events, replay = ports[3 * number : 3 * number + 3]
            engine = ["fake-engine", "--port", str(http), "--model", "fake", "--speed", "20"]
            engine += ["--kv-events", f"tcp://*:{events}"]
            engine += ["--replay-endpoint", f"tcp://*:{replay}"]
            stack.enter_context(command(*engine))
            replicas += ["--replica", f"http://127.0.0.1:{http}"]
        serve = ["serve", *replicas, "--port", str(port), "--admin-port", str(admin)]
        serve += ["--kv-events", "auto", "--tokenizer", "engine", "--debug-headers"]
        stack.enter_context(command(*serve))

        def metrics() -> str:
            return fetch(f"http://127.0.0.1:{admin}/metrics")[1].decode()

        def exact() -> bool:
            found = [line for line in metrics().splitlines() if "warmlane_replica_exact{" in line]
            return len(found) == 2 and all(line.endswith(" 1.0") for line in found)

        until(exact)
        text = "word " * 700

        def turn(messages: list[dict[str, str]]) -> tuple[int, int]:
            body = {"model": "fake", "messages": messages, "max_tokens": 8}
            headers, answer = fetch(f"{url}/v1/chat/completions", body)
            usage = json.loads(answer)["usage"]
            cached = usage["prompt_tokens_details"]["cached_tokens"]
            return int(headers["x-warmlane-hit-tokens"]), cached

        def counted() -> bool:
            body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
            fetch(f"{url}/v1/chat/completions", {**body, "max_tokens": 1})
            return 'result="exact"' in metrics()  # the replicas' tokenizers are proven now

        until(counted)
        for number in range(5):
            talk = [{"role": "user", "content": f"{number} {text}"}]
            assert turn(talk) == (0, 0)
            time.sleep(0.3)  # the events of the answer arrive a few milliseconds after it
            talk += [{"role": "assistant", "content": "yes"}, {"role": "user", "content": "more"}]
            predicted, actual = turn(talk)
            assert actual > 500
            assert abs(predicted - actual) <= BLOCK
