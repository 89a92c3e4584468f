"""All bars one after the other (`make bench`): exit status 1 when one falls short.

Arguments (--quick, --save) go to each benchmark. One that cannot start counts as short.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
LIMIT_S = 1800


def main() -> int:
    status = 0
    for path in sorted(HERE.glob("bench_*.py")):
        command = [sys.executable, "-m", f"benchmarks.{path.stem}", *sys.argv[1:]]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, timeout=LIMIT_S)
        if done.returncode:
            print(f"# {path.stem}: exit status {done.returncode}", flush=True)
            status = 1
    print(f"# make bench: {'a bar falls short' if status else 'no bar falls short'}")
    return status


if __name__ == "__main__":
    sys.exit(main())
