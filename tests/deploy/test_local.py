"""The local example: three fake engines, the picker over TLS, a real Envoy; one command."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from tests.envoy_e2e.install import ROOT, envoy_binary


def test_it_runs_and_later_turns_come_from_the_cache() -> None:
    command = [sys.executable, str(ROOT / "deploy" / "local" / "run.py"), "--port", "0", "--once"]
    env = os.environ | {"WARMLANE_ENVOY": str(envoy_binary()), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"of later turns (\d+) of (\d+) tokens", done.stdout)
    assert found is not None and int(found[1]) > 0.9 * int(found[2])


def test_without_envoy_it_says_how_to_get_one() -> None:
    script = ROOT / "deploy" / "local" / "run.py"
    code = f"import runpy, pathlib; m = runpy.run_path({str(script)!r}); m['envoy_binary']()"
    code = f"import pathlib; pathlib.Path.exists = lambda self: False; {code}"
    env = {k: v for k, v in os.environ.items() if k != "WARMLANE_ENVOY"} | {"PATH": "/nonexistent"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)
    assert done.returncode != 0
    assert "make envoy" in done.stderr
