"""Fake engines, the endpoint picker and a real Envoy on this machine; no container, no GPU.

    make envoy                                  fetches Envoy, then runs this
    python deploy/local/run.py [--port 8080]    where Envoy is on the PATH (or in WARMLANE_ENVOY)
    python deploy/local/run.py --once           talks to it a little, says what it saw, and ends

Envoy runs deploy/envoy/original-dst.yaml; only ports differ from the file. Everything listens on
loopback and stops with this script.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "deploy" / "envoy" / "original-dst.yaml"
BUNDLED = ROOT / ".venvs" / "envoy" / "bin" / "envoy"
READY_S = 90.0
CHATS, TURNS = 4, 3


def envoy_binary() -> str:
    """Where Envoy is; the script ends with advice where it is not."""
    found = os.environ.get("WARMLANE_ENVOY") or shutil.which("envoy")
    if found is None and BUNDLED.exists():
        found = str(BUNDLED)
    if found is None:
        sys.exit("no Envoy here: `make envoy` fetches one, or name yours with WARMLANE_ENVOY=")
    return found


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def envoy_config(port: int, admin: int, picker: int) -> dict[str, Any]:
    """The file of deploy/envoy with other ports."""
    tree: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    static = tree["static_resources"]
    tree["admin"]["address"]["socket_address"]["port_value"] = admin
    static["listeners"][0]["address"]["socket_address"]["port_value"] = port
    [cluster] = [each for each in static["clusters"] if each["name"] == "picker"]
    [place] = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    place["endpoint"]["address"]["socket_address"]["port_value"] = picker
    return tree


@contextlib.contextmanager
def running(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(url: str, *processes: subprocess.Popen[bytes]) -> None:
    """Until it answers 200; the script ends when a process does."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if any(each.poll() is not None for each in processes):
            sys.exit("a process ended early; its last words are above")
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2):
            return
        time.sleep(0.1)
    sys.exit(f"{url} does not answer")


def ask(url: str, messages: list[dict[str, str]]) -> dict[str, Any]:
    body = json.dumps({"model": "fake", "messages": messages, "max_tokens": 16}).encode()
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", body, {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        told: dict[str, Any] = json.loads(answer.read())
        return told


def talk(url: str) -> int:
    """A few chats of a few turns; exit status 0 when later turns came from the cache."""
    prompt = cached = 0
    chats: list[list[dict[str, str]]] = [
        [{"role": "system", "content": f"You are number {n}. " + "Be brief. " * 200}]
        for n in range(CHATS)
    ]
    for turn in range(TURNS):
        for chat in chats:
            chat.append({"role": "user", "content": f"question {turn}"})
            told = ask(url, chat)
            chat.append(told["choices"][0]["message"])
            if turn:
                prompt += told["usage"]["prompt_tokens"]
                cached += told["usage"]["prompt_tokens_details"]["cached_tokens"]
    print(f"{CHATS * TURNS} requests; of later turns {cached} of {prompt} tokens were cached")
    return 0 if cached > prompt / 2 else 1


def main() -> int:
    parser = argparse.ArgumentParser(description="Envoy, picker and fake engines on this machine.")
    parser.add_argument("--port", type=int, default=8080, help="Envoy's; 0 takes a free one")
    parser.add_argument("--engines", type=int, default=3, help="fake engines (default: 3)")
    parser.add_argument("--once", action="store_true", help="talk to it a little, then end")
    args = parser.parse_args()
    binary = envoy_binary()
    picker, health, metrics, admin, free, *ports = free_ports(5 + args.engines)
    port = args.port or free
    us = (sys.executable, "-m", "warmlane")
    replicas = [word for each in ports for word in ("--replica", f"http://127.0.0.1:{each}")]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        config = Path(folder) / "envoy.json"
        config.write_text(json.dumps(envoy_config(port, admin, picker)))
        engines = [
            stack.enter_context(running(*us, "fake-engine", "--port", str(each))) for each in ports
        ]
        options = ["--port", str(picker), "--health-port", str(health), "--log-level", "warning"]
        options += ["--metrics-port", str(metrics)]
        choosing = stack.enter_context(running(*us, "ext-proc", *options, *replicas))
        wait_for(f"http://127.0.0.1:{metrics}/readyz", choosing, *engines)
        words = ["-c", str(config), "--disable-hot-restart", "-l", "error", "--concurrency", "2"]
        envoy = stack.enter_context(running(binary, *words))
        wait_for(f"http://127.0.0.1:{admin}/ready", envoy)
        url = f"http://127.0.0.1:{port}"
        if args.once:
            return talk(url)
        print(f"Envoy {url} | its admin http://127.0.0.1:{admin} | picker's metrics :{metrics}")
        print(f"try: curl {url}/v1/chat/completions -H 'content-type: application/json' \\")
        print("""  -d '{"model": "fake", "messages": [{"role": "user", "content": "hello"}]}'""")
        with contextlib.suppress(KeyboardInterrupt):
            envoy.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
