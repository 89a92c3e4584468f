"""What runs of the lab say: figures of one run, means over samples, paired intervals, a table.

A sample is one seed and window; every policy meets the same samples, so policies are compared
sample by sample: the mean of the logarithms of the ratios with Student's t interval of 95 %.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp, log, sqrt

import msgspec

from warmlane.router.sim.lab_run import Run
from warmlane.router.sim.statistics import Spread, spread

# Two-sided 95 % quantiles of Student's t by degrees of freedom; the last one from there on.
_T95 = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.16)
_T95_FAR = 2.09  # 20 degrees of freedom
_CURVE = 40  # points of the curve of TTFT


class Slo(msgspec.Struct, frozen=True):
    """A request is good when both hold: time to first token, and mean time per further token."""

    ttft_s: float = 2.0
    tpot_s: float = 0.05


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """One policy over one sample. Times in seconds.

    hit_tokens, prompt_tokens: of the answered requests, by the engines. predicted_hit_tokens: what
    the router expected of them. goodput: share of all requests sent that were answered within
    the SLO. skipped: sessions that ended at a prompt no replica can hold. fallbacks: decisions
    for which the policy's own advice failed. tier_hit_tokens: of the hits, those loaded from a
    slower tier (of all requests, also those before `since_s`). spread: busy time of the busiest
    replica over the mean. in_zone: share that was answered in its router's zone, None
    where there is but one. curve: TTFT at equal steps of the share of requests.
    """

    requests: int
    failed: int
    skipped: int
    fallbacks: int
    ttft: Spread
    tpot: Spread
    e2e: Spread
    goodput: float
    hit_tokens: int
    prompt_tokens: int
    predicted_hit_tokens: int
    output_tokens: int
    spread: float
    preemptions: int
    makespan_s: float
    curve: tuple[float, ...]
    tier_hit_tokens: int = 0
    in_zone: float | None = None

    @property
    def hit(self) -> float:
        """Share of the prompt tokens that came from the cache."""
        return self.hit_tokens / (self.prompt_tokens or 1)


def figures(run: Run, slo: Slo, since_s: float = 0.0) -> Figures:
    """The figures of a run; of the requests that came from `since_s` on: before it caches warm."""
    done = [each for each in run.done if each.at >= since_s] if since_s > 0.0 else run.done
    tpot = [(each.e2e - each.ttft) / (each.output - 1) for each in done if each.output > 1]
    good = sum(
        each.ttft <= slo.ttft_s
        and (each.output < 2 or each.e2e - each.ttft <= slo.tpot_s * (each.output - 1))
        for each in done
    )
    ordered = sorted(each.ttft for each in done)
    last = len(ordered) - 1
    return Figures(
        requests=len(done),
        failed=run.failed,
        skipped=run.skipped,
        fallbacks=run.fallbacks,
        ttft=spread(ordered),
        tpot=spread(tpot),
        e2e=spread([each.e2e for each in done]),
        goodput=good / (len(done) + run.failed or 1),
        hit_tokens=sum(each.cached for each in done),
        prompt_tokens=sum(each.prompt for each in done),
        predicted_hit_tokens=sum(each.predicted for each in done),
        output_tokens=sum(each.output for each in done),
        spread=max(run.busy_s) * len(run.busy_s) / (sum(run.busy_s) or 1.0),
        preemptions=run.preemptions,
        makespan_s=run.makespan_s,
        tier_hit_tokens=run.tier_hits,
        in_zone=1.0 - sum(each.away for each in done) / (len(done) or 1) if run.zones else None,
        curve=tuple(ordered[last * i // _CURVE] for i in range(_CURVE + 1)) if ordered else (),
    )


class Interval(msgspec.Struct, frozen=True):
    """A ratio to another policy over paired samples, and its 95 % interval (None: one sample)."""

    ratio: float
    low: float | None
    high: float | None


def paired(mine: Sequence[float], theirs: Sequence[float]) -> Interval | None:
    """Geometric mean of mine / theirs, sample by sample. None where a value is not above 0."""
    if not mine or min(*mine, *theirs) <= 0.0:
        return None
    logs = [log(a / b) for a, b in zip(mine, theirs, strict=True)]
    count = len(logs)
    mean = sum(logs) / count
    if count < 2:
        return Interval(exp(mean), None, None)
    error = sqrt(sum((value - mean) ** 2 for value in logs) / (count - 1) / count)
    t = _T95[count - 2] if count - 2 < len(_T95) else _T95_FAR
    return Interval(exp(mean), exp(mean - t * error), exp(mean + t * error))


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """One policy over all samples. Spreads: means of the samples' figures.

    ttft_ratio, e2e_ratio: means against the first policy of the report, paired.
    """

    policy: str
    requests: int
    failed: int
    skipped: int
    fallbacks: int
    ttft: Spread
    tpot: Spread
    e2e: Spread
    goodput: float
    hit: float
    spread: float
    preemptions: int
    ttft_ratio: Interval | None
    e2e_ratio: Interval | None
    curve: tuple[float, ...]
    samples: list[Figures]
    in_zone: float | None = None


def _mean_spread(spreads: Sequence[Spread]) -> Spread:
    columns = zip(*(msgspec.structs.astuple(each) for each in spreads), strict=True)
    return Spread(*(sum(column) / len(spreads) for column in columns))


def summarise(found: Mapping[str, Sequence[Figures]]) -> list[Summary]:
    """One summary a policy, in the order given; all against the first."""
    first = next(iter(found.values()))
    summaries: list[Summary] = []
    for policy, samples in found.items():
        count = len(samples)
        curves = [each.curve for each in samples if each.curve]
        zones = [each.in_zone for each in samples if each.in_zone is not None]
        summaries.append(
            Summary(
                policy=policy,
                requests=sum(each.requests for each in samples),
                failed=sum(each.failed for each in samples),
                skipped=sum(each.skipped for each in samples),
                fallbacks=sum(each.fallbacks for each in samples),
                ttft=_mean_spread([each.ttft for each in samples]),
                tpot=_mean_spread([each.tpot for each in samples]),
                e2e=_mean_spread([each.e2e for each in samples]),
                goodput=sum(each.goodput for each in samples) / count,
                hit=sum(each.hit_tokens for each in samples)
                / (sum(each.prompt_tokens for each in samples) or 1),
                spread=sum(each.spread for each in samples) / count,
                preemptions=sum(each.preemptions for each in samples),
                ttft_ratio=paired(
                    [each.ttft.mean for each in samples], [each.ttft.mean for each in first]
                ),
                e2e_ratio=paired(
                    [each.e2e.mean for each in samples], [each.e2e.mean for each in first]
                ),
                curve=tuple(sum(at) / len(curves) for at in zip(*curves, strict=True)),
                samples=list(samples),
                in_zone=sum(zones) / len(zones) if zones else None,
            )
        )
    return summaries


def between(interval: Interval | None) -> str:
    """A ratio and its interval as text."""
    if interval is None:
        return "-"
    if interval.low is None or interval.high is None:
        return f"{interval.ratio:.2f}"
    return f"{interval.ratio:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def rows(summaries: Sequence[Summary]) -> list[list[str]]:
    """The table, its head first, as text."""
    reference = summaries[0].policy
    head = ["policy", "hit", "TTFT mean", "p50", "p90", "p99", "TPOT ms", "p99", "E2E mean", "p50"]
    zones = any(each.in_zone is not None for each in summaries)
    head += ["p90", "p99", "goodput", "max/mean", *["in zone"] * zones, "failed"]
    head.append(f"TTFT / {reference}")
    table = [head]
    for each in summaries:
        ttft, e2e = each.ttft, each.e2e
        line = [each.policy, f"{each.hit:.1%}"]
        line += [f"{value:.3f}" for value in (ttft.mean, ttft.p50, ttft.p90, ttft.p99)]
        line += [f"{1000 * each.tpot.mean:.1f}", f"{1000 * each.tpot.p99:.1f}"]
        line += [f"{value:.2f}" for value in (e2e.mean, e2e.p50, e2e.p90, e2e.p99)]
        line += [f"{each.goodput:.1%}", f"{each.spread:.2f}"]
        if zones:
            line.append("-" if each.in_zone is None else f"{each.in_zone:.1%}")
        line.append(str(each.failed))
        table.append([*line, between(each.ttft_ratio)])
    return table


def text_table(summaries: Sequence[Summary]) -> str:
    """Aligned text, one line a policy."""
    return aligned(rows(summaries))


def aligned(table: Sequence[Sequence[str]]) -> str:
    """A table whose first column is of names, as text."""
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    lines: list[str] = []
    for line in table:
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
