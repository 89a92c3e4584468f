"""The soak of the native transport, short: `python -m benchmarks.soak_ext_proc` runs an hour."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from warmlane.envoy.transport_native import why_missing

ROOT = Path(__file__).resolve().parents[2]
SECONDS = float(os.environ.get("WARMLANE_SOAK_SECONDS", "30"))


@pytest.mark.timeout(SECONDS + 240)
@pytest.mark.skipif(bool(why_missing()), reason=why_missing())
def test_soak() -> None:
    paths = os.pathsep.join((str(ROOT), str(ROOT / "src")))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.soak_ext_proc", "--seconds", str(SECONDS)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": paths, "PYTHONSAFEPATH": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS + 200,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "whole and flat" in done.stdout
