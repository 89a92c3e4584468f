"""All bars one after the other (`make bench`): exit status 1 when one falls short.

Arguments (--quick, --save) go to each benchmark. One that cannot start or end counts as short. The
policies have a command of their own (`make bench-policies`, up to two hours).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
LIMIT_S = 1800
APART = {"bench_policies": "make bench-policies"}


def main() -> int:
    status = 0
    for path in sorted(HERE.glob("bench_*.py")):
        if path.stem in APART:
            print(f"# {path.stem}: not run here, see {APART[path.stem]}", flush=True)
            continue
        command = [sys.executable, "-m", f"benchmarks.{path.stem}", *sys.argv[1:]]
        try:
            ended = str(
                subprocess.run(command, stdin=subprocess.DEVNULL, timeout=LIMIT_S).returncode
            )
        except subprocess.TimeoutExpired:
            ended = f"none within {LIMIT_S} s"
        if ended != "0":
            print(f"# {path.stem}: exit status {ended}", flush=True)
            status = 1
    print(f"# make bench: {'a bar falls short' if status else 'no bar falls short'}")
    return status


if __name__ == "__main__":
    sys.exit(main())
