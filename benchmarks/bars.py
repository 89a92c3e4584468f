"""Bars: measured values against stated limits, on a machine whose speed is calibrated.

Question: does a figure meet its bar here and now? Every benchmark of `make bench` prints one line
per bar, `name value unit bar ok|short|void`, and exits with status 1 when one falls short.

- `ok`: meets the bar. `short`: does not. `void`: could not be judged (peer missing, or the samples
  spread more than 25 %: interquartile range over median); a void bar is never counted as met.
- Absolute figures (seconds, bytes a second) are judged against the limit times the machine's
  scale: how much slower two loops run here than on the machine the bars were set on. One follows
  dependent loads through 64 MB, the other hashes with XXH3. Both run before and after each figure;
  the scale is clamped to 0.7-1.5.
- Ratios, counts and bytes are judged as they are (`scaled=False`).

Measure CPU time (`time.thread_time`), take medians, interleave competitors in one run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import xxhash

from warmlane import __version__
from warmlane._core.calibrate import follow, random_ring

# Medians of 20 runs on the machine the bars were set on: AMD EPYC, 2 shared virtual cores, 32 MB
# of L3, Python 3.11.
REFERENCE_LOAD_NS = 145.0
REFERENCE_XXH3_GB_S = 88.0
SCALE_MIN, SCALE_MAX = 0.7, 1.5
MAX_SPREAD = 0.25
LOADS = 200_000  # dependent loads a round
RING_LENGTH = 16 * 1024 * 1024  # uint32: 64 MB, beyond any L2 and most L3
HASH_BYTES = 64 * 1024
RESULTS = Path(__file__).resolve().parent / "results"

Better = Literal["less", "more"]


def spread(samples: Sequence[float]) -> float:
    """Interquartile range over median; 0 for fewer than four samples."""
    if len(samples) < 4:
        return 0.0
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    return (high - low) / middle if middle else 0.0


def steady(measure: Callable[[], list[float]], tries: int = 3) -> list[float]:
    """Samples of the first measurement whose spread is allowed; of the last one if none is."""
    samples: list[float] = []
    for _ in range(tries):
        samples = measure()
        if spread(samples) <= MAX_SPREAD:
            break
    return samples


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU time of this thread for one call."""
    start = time.thread_time()
    work()
    return time.thread_time() - start


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = ""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith(("model name", "CPU part")):
                model = line.split(":", 1)[1].strip()
                break
    return {
        "cpu": model or platform.processor(),
        "cores": os.cpu_count(),
        "arch": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "warmlane": __version__,
        "load_average": [round(value, 2) for value in os.getloadavg()],
    }


class Calibration:
    """Speed of this machine: nanoseconds a dependent load, GB/s of XXH3, and the scale of both.

    scale > 1: this machine is slower than the reference and limits of time are widened by it.
    """

    def __init__(self) -> None:
        self._ring = random_ring(RING_LENGTH)
        self._data = os.urandom(HASH_BYTES)
        self._at = 0
        self._check_s = cpu_seconds(lambda: follow(self._ring, 0))
        self.load_ns = self.xxh3_gb_s = self.scale = 0.0
        self.measure(rounds=9)

    def _walk(self) -> None:
        self._at = follow(self._ring, LOADS, self._at)

    def _hash(self) -> None:
        for _ in range(64):
            xxhash.xxh3_64_intdigest(self._data)

    def measure(self, rounds: int = 5) -> float:
        """Measure again (about 0.3 s) and return the new scale."""
        loads: list[float] = []
        hashes: list[float] = []
        for _ in range(rounds):
            # follow() checks the whole ring before it walks: that time is taken off.
            self._check_s = min(self._check_s, cpu_seconds(lambda: follow(self._ring, 0)))
            loads.append((cpu_seconds(self._walk) - self._check_s) / LOADS * 1e9)
            hashes.append(64 * HASH_BYTES / cpu_seconds(self._hash) / 1e9)
        self.load_ns = statistics.median(loads)
        self.xxh3_gb_s = statistics.median(hashes)
        raw = (self.load_ns / REFERENCE_LOAD_NS * REFERENCE_XXH3_GB_S / self.xxh3_gb_s) ** 0.5
        self.scale = min(max(raw, SCALE_MIN), SCALE_MAX)
        return self.scale

    def as_dict(self) -> dict[str, float]:
        return {"load_ns": self.load_ns, "xxh3_gb_s": self.xxh3_gb_s, "scale": self.scale}


class Bench:
    """Collects the bars of one benchmark, prints them, writes JSON, and gives the exit status."""

    def __init__(
        self,
        name: str,
        question: str,
        argv: Sequence[str] | None = None,
        add_arguments: Callable[[argparse.ArgumentParser], None] | None = None,
    ) -> None:
        parser = argparse.ArgumentParser(prog=f"bench_{name}", description=question)
        parser.add_argument("--quick", action="store_true", help="a shorter run, fewer sizes")
        parser.add_argument(
            "--save", action="store_true", help=f"write benchmarks/results/{name}.json"
        )
        if add_arguments is not None:
            add_arguments(parser)
        self.args = parser.parse_args(argv)
        self.name = name
        self.rows: list[dict[str, Any]] = []
        self.notes: dict[str, Any] = {}
        self.speed = Calibration()
        self.scale = self.speed.scale
        self.at_start = self.speed.as_dict()
        print(
            f"# {name}: {question}\n# load {self.speed.load_ns:.1f} ns, "
            f"XXH3 {self.speed.xxh3_gb_s:.1f} GB/s, scale {self.scale:.2f}",
            flush=True,
        )

    def _scale_now(self) -> float:
        """The scale around a measurement that has just ended: the mean of the last and a new one.

        A shared machine changes within a run; a scale from its start would judge the wrong minute.
        """
        last = self.scale
        self.scale = self.speed.measure()
        return (last + self.scale) / 2

    def bar(
        self,
        name: str,
        value: float | None,
        unit: str,
        limit: float,
        better: Better = "less",
        samples: Sequence[float] = (),
        *,
        scaled: bool = True,
        why_void: str = "",
    ) -> str:
        """Judge one figure. `value` None takes the median of `samples`. Returns the verdict.

        `scaled`: the limit is a time (or a rate, with better="more") and moves with the machine.
        `why_void`: the reason that the figure cannot be judged; the verdict is then "void".
        """
        if value is None and samples:
            value = statistics.median(samples)
        factor = self._scale_now() if scaled else 1.0
        bound = limit * factor if better == "less" else limit / factor
        wide = spread(samples)
        if value is None or why_void:
            verdict = "void"
        elif wide > MAX_SPREAD:
            verdict, why_void = "void", f"spread {wide:.0%}"
        else:
            verdict = "ok" if (value <= bound if better == "less" else value >= bound) else "short"
        shown = "-" if value is None else f"{value:.4g}"
        sign = "<=" if better == "less" else ">="
        print(
            f"{name} {shown} {unit} {sign}{bound:.4g} {verdict}"
            + (f"  # {why_void}" if why_void else ""),
            flush=True,
        )
        self.rows.append(
            {
                "name": name,
                "value": value,
                "unit": unit,
                "better": better,
                "limit": limit,
                "limit_here": bound,
                "scale": round(factor, 3),
                "verdict": verdict,
                "spread": round(wide, 4),
                "why_void": why_void,
            }
        )
        return verdict

    def tell(self, name: str, value: float, unit: str) -> None:
        """A figure without a bar: printed as a comment and kept in the results."""
        print(f"# {name} {value:.4g} {unit}", flush=True)
        self.notes[name] = {"value": value, "unit": unit}

    def finish(self) -> int:
        """Print the sum, write the results if asked to, return the exit status (1: a bar short)."""
        count = {
            verdict: sum(row["verdict"] == verdict for row in self.rows)
            for verdict in ("ok", "short", "void")
        }
        print(f"# {self.name}: {count['ok']} ok, {count['short']} short, {count['void']} void")
        if self.args.save:
            RESULTS.mkdir(exist_ok=True)
            path = RESULTS / f"{self.name}.json"
            report = {
                "bench": self.name,
                "quick": self.args.quick,
                "machine": machine(),
                "calibration": self.at_start,
                "bars": self.rows,
                "notes": self.notes,
            }
            path.write_text(json.dumps(report, indent=1) + "\n")
            print(f"# written to {path.name}", file=sys.stderr)
        return 1 if count["short"] else 0
