"""The fuzz targets run under AddressSanitizer and UndefinedBehaviorSanitizer without a report."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
SECONDS_A_TARGET = os.environ.get("WARMLANE_FUZZ_SECONDS", "4")
NO_SANITIZER = 3  # exit status of the script where gcc lacks the run-time libraries


@pytest.mark.timeout(1200)  # the first run builds every extension with the sanitizers
@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_fuzz_targets_under_sanitizers() -> None:
    done = subprocess.run(
        [str(HERE / "run_sanitized.sh"), SECONDS_A_TARGET, sys.executable],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1100,
    )
    if done.returncode == NO_SANITIZER:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout[-8_000:]
    for target in HERE.glob("fuzz_*.py"):
        assert f"== {target.name}" in done.stdout
    assert "run_sanitized: no report" in done.stdout
