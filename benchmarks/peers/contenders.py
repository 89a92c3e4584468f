"""The proxies that bench_proxy compares: how each is installed, started and its CPU time counted.

Released routers live in `.venvs/NAME`, made from PyPI on first use at the versions below. nginx is
used when it is installed (or named by the NGINX variable): nothing is installed into the system.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
VERSIONS = {
    "ai-dynamo-runtime": "1.6.1",
    "sglang-router": "0.3.2",
    "vllm-router": "0.1.17",
}
READY_S = 60
INSTALL_S = 300


class Unavailable(Exception):
    """This contender cannot run here; the message says why and how to get it."""


@dataclass
class Contender:
    """One running proxy: where it listens and the processes whose CPU time counts."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    version: str = ""
    log: Path = field(default_factory=Path)

    def cpu_s(self) -> float:
        """CPU seconds of the process and all its descendants so far, from the scheduler's count."""
        total = 0
        for pid in descendants(self.process.pid):
            for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
                with contextlib.suppress(OSError):
                    total += int(task.read_text().split()[0])
        return total / 1e9

    def peak_mib(self) -> float:
        """Sum of the peak resident sizes of its processes."""
        total = 0
        for pid in descendants(self.process.pid):
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                    if line.startswith("VmHWM:"):
                        total += int(line.split()[1])
        return total / 1024

    def stop(self) -> None:
        """End the whole group: TERM, then KILL to what is left of it."""
        for which in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, which)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=5)


def descendants(root: int) -> list[int]:
    """`root` and the processes below it, from one pass over /proc."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def launch(name: str, command: list[str], port: int, work: Path, version: str = "") -> Contender:
    """Start in a process group of its own, output to a file in the work folder."""
    log = work / f"{name}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=work, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            start_new_session=True, env=os.environ | {"PYTHONSAFEPATH": "1"},
        )  # fmt: skip
    return Contender(name, port, process, version, log)


def wait_ready(contender: Contender, path: str = "/v1/chat/completions") -> None:
    """Return when it relays a completion three times in a row (both replicas are in)."""
    body = b'{"model":"bench","stream":false,"messages":[{"role":"user","content":"ready?"}]}'
    url = f"http://127.0.0.1:{contender.port}{path}"
    request = urllib.request.Request(url, body, {"content-type": "application/json"})
    deadline = time.monotonic() + READY_S
    good = 0
    while time.monotonic() < deadline and contender.process.poll() is None:
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                good += answer.status == 200
        except OSError:
            good = 0
        if good >= 3:
            return
        time.sleep(0.1)
    tail = contender.log.read_text(errors="replace")[-1500:]
    contender.stop()
    raise Unavailable(f"{contender.name} did not become ready: {tail}")


def package_venv(name: str) -> Path:
    """The interpreter of `.venvs/NAME` with the pinned release of a peer."""
    python = ROOT / ".venvs" / name / "bin" / "python"
    stamp = ROOT / ".venvs" / name / "installed"
    if not stamp.exists() or stamp.read_text() != VERSIONS[name]:
        pip = [str(python), "-m", "pip", "install", "-qq", f"{name}=={VERSIONS[name]}"]
        for command in ([sys.executable, "-m", "venv", str(python.parents[1])], pip):
            try:
                done = subprocess.run(
                    command, stdin=subprocess.DEVNULL, capture_output=True, timeout=INSTALL_S
                )
            except subprocess.TimeoutExpired:
                raise Unavailable(f"installing {name} took over {INSTALL_S} s") from None
            if done.returncode:
                said = done.stderr.decode(errors="replace").strip().splitlines()
                raise Unavailable(f"{name} {VERSIONS[name]} cannot be had: {said[-1:]}")
        stamp.write_text(VERSIONS[name])
    return python


def warmlane(replicas: list[str], work: Path) -> Contender:
    port, admin = free_port(), free_port()
    command = [sys.executable, "-m", "warmlane", "serve", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--admin-port", str(admin)]
    for url in replicas:
        command += ["--replica", url]
    return launch("warmlane", command, port, work)


def aiohttp(replicas: list[str], work: Path, loop: str = "asyncio") -> Contender:
    port = free_port()
    command = [sys.executable, str(HERE / "aiohttp_proxy.py"), loop, str(port), *replicas]
    name = "aiohttp" if loop == "asyncio" else f"aiohttp-{loop}"
    return launch(name, command, port, work, metadata.version("aiohttp"))


def aiohttp_uvloop(replicas: list[str], work: Path) -> Contender:
    return aiohttp(replicas, work, "uvloop")


NGINX_CONF = """
daemon off; worker_processes 1; pid nginx.pid; error_log stderr crit;
events { worker_connections 4096; }
http {
  access_log off; keepalive_requests 100000000; client_max_body_size 32m;
  client_body_buffer_size 1m; client_body_temp_path body; proxy_temp_path proxy;
  fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  upstream replicas { SERVERS keepalive 128; keepalive_requests 100000000; }
  server {
    listen 127.0.0.1:PORT backlog=1024; tcp_nodelay on;
    location / {
      proxy_pass http://replicas; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off;
    }
  }
}
"""


def nginx(replicas: list[str], work: Path) -> Contender:
    binary = os.environ.get("NGINX") or shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if binary is None:
        raise Unavailable("nginx is not installed (Debian: apt install nginx, or set NGINX=path)")
    said = subprocess.run([binary, "-v"], capture_output=True, text=True).stderr
    port = free_port()
    servers = " ".join(f"server {url.removeprefix('http://')};" for url in replicas)
    folder = work / "nginx"
    folder.mkdir()
    config = folder / "nginx.conf"
    config.write_text(NGINX_CONF.replace("PORT", str(port)).replace("SERVERS", servers))
    command = [binary, "-p", str(folder), "-c", str(config)]
    return launch("nginx", command, port, work, said.strip().rpartition("/")[2])


def sglang_router(replicas: list[str], work: Path) -> Contender:
    python = package_venv("sglang-router")
    port, metrics = free_port(), free_port()
    command = [str(python), "-m", "sglang_router.launch_router", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--prometheus-port", str(metrics), "--log-level", "warn"]
    command += ["--policy", "cache_aware", "--worker-urls", *replicas]
    return launch("sglang-router", command, port, work, VERSIONS["sglang-router"])


def vllm_router(replicas: list[str], work: Path) -> Contender:
    python = package_venv("vllm-router")
    port, metrics = free_port(), free_port()
    command = [str(python.parent / "vllm-router"), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--prometheus-port", str(metrics), "--log-level", "warning"]
    command += ["--policy", "cache_aware", "--worker-urls", *replicas]
    return launch("vllm-router", command, port, work, VERSIONS["vllm-router"])


CONTENDERS: dict[str, Callable[[list[str], Path], Contender]] = {
    "warmlane": warmlane,
    "nginx": nginx,
    "aiohttp": aiohttp,
    "aiohttp-uvloop": aiohttp_uvloop,
    "sglang-router": sglang_router,
    "vllm-router": vllm_router,
}


@contextlib.contextmanager
def backends(count: int, work: Path) -> Iterator[list[str]]:
    """Replicas that answer at once; their URLs."""
    started = []
    try:
        for number in range(count):
            port = free_port()
            command = [sys.executable, str(HERE / "backend.py"), str(port)]
            started.append(launch(f"backend-{number}", command, port, work))
        for backend in started:
            wait_ready(backend)
        yield [f"http://127.0.0.1:{backend.port}" for backend in started]
    finally:
        for backend in started:
            backend.stop()
