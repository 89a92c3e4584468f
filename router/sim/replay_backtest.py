"""Does the lab predict what was recorded? Your own hours again, under the policy that ran. Floor 6.

Each recorded request comes at its recorded time to modelled replicas; what the lab says of times
and hits is held against what the router measured. A lab that is off by more than LIMITS here says
nothing about other policies there, and `warmlane replay --backtest` refuses to compare them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from warmlane.router.config import PoolConfig
from warmlane.router.registry import POLICIES
from warmlane.router.sim.lab import Lab
from warmlane.router.sim.lab_run import LabOptions
from warmlane.router.sim.record_trace import Recorded, answered, is_record, read, trace
from warmlane.router.sim.trace_types import TraceError

# Greatest errors with which a what-if is told: of mean times relative, of the hit share absolute.
# Good policies differ by 10 to 100 % in mean TTFT (docs/policies.md): a larger error would decide.
LIMITS: Final = {"mean TTFT": 0.25, "mean E2E": 0.20, "hit share": 0.10}
LEAST_REQUESTS: Final = 30


class Row(msgspec.Struct, frozen=True):
    """One figure, in seconds or as a share. error: relative for times, else the difference."""

    name: str
    recorded: float
    predicted: float
    error: float
    limit: float

    @property
    def fits(self) -> bool:
        return abs(self.error) <= self.limit


class Backtest(msgspec.Struct, frozen=True):
    """What came out. skipped: requests that no modelled replica can hold."""

    policy: str
    requests: int
    skipped: int
    rows: list[Row]

    @property
    def fits(self) -> bool:
        return all(row.fits for row in self.rows)

    def text(self) -> str:
        """A small table and the verdict."""
        lines = [
            f"backtest: {self.requests:,} recorded requests under {self.policy}"
            + (f", {self.skipped:,} skipped" if self.skipped else ""),
            f"{'':<12}{'recorded':>12}{'predicted':>12}{'error':>10}{'limit':>10}",
        ]
        for row in self.rows:
            shown = f"{row.error:+.1%}" if row.name != "hit share" else f"{row.error:+.3f}"
            limit = f"{row.limit:.0%}" if row.name != "hit share" else f"{row.limit:.2f}"
            lines.append(
                f"{row.name:<12}{row.recorded:>12.4g}{row.predicted:>12.4g}{shown:>10}{limit:>10}"
                + ("" if row.fits else "  too large")
            )
        return "\n".join(lines)


def record_at(name: str, kind: str) -> Recorded | None:
    """The record in that file, None where it is another trace. TraceError."""
    path = Path(name)
    if kind not in ("auto", "record") or not path.is_file():
        return None
    return read(path) if kind == "record" or is_record(path) else None


def fleet_size(recorded: Recorded) -> tuple[int, int]:
    """(replicas, KV tokens of one; 0: unknown) of the pool that had most requests."""
    lines, head = answered(recorded), recorded.head
    pool = lines[0].pool if lines else ""
    seen = len({line.slot for line in lines})
    known = sorted(tokens for tokens in head.capacities.get(pool, []) if tokens)
    return max(head.replicas.get(pool, 0), seen, 1), known[len(known) // 2] if known else 0


def backtest(recorded: Recorded, options: LabOptions, ran: str = "") -> Backtest:
    """Predict it. ran: the policy, where the record does not tell. TraceError: it cannot be."""
    lines = answered(recorded)
    if len(lines) < LEAST_REQUESTS:
        raise TraceError(f"--backtest: {len(lines)} answered requests; {LEAST_REQUESTS} are needed")
    policy = ran or recorded.head.policy.get(lines[0].pool, "")
    if policy not in POLICIES:
        raise TraceError(
            "--backtest: the record does not tell which policy ran"
            " (own scorers, or shadow mode): name it with --ran"
        )
    run = Lab(trace(recorded, "record", open_loop=True), PoolConfig(policy=policy), options).run()
    if not run.done:
        raise TraceError("--backtest: no modelled replica can hold any of these prompts")
    rows = [
        _relative("mean TTFT", [each.ttft for each in lines], [each.ttft for each in run.done]),
        _relative("mean E2E", [each.e2e for each in lines], [each.e2e for each in run.done]),
    ]
    told = [each for each in lines if each.cached >= 0]
    if told:
        seen = sum(each.cached for each in told) / sum(each.prompt for each in told)
        found = sum(each.cached for each in run.done) / sum(each.prompt for each in run.done)
        rows.append(Row("hit share", seen, found, found - seen, LIMITS["hit share"]))
    return Backtest(policy, len(lines), run.skipped + run.failed, rows)


def _relative(name: str, recorded: list[float], predicted: list[float]) -> Row:
    seen, found = sum(recorded) / len(recorded), sum(predicted) / len(predicted)
    return Row(name, seen, found, found / seen - 1.0 if seen else 0.0, LIMITS[name])
