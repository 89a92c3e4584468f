"""The lab's report as one HTML file: a table and charts as inline SVG, no script, nothing fetched.

Colours come in the order of the policies; every bar carries its value as text, and the curves are
told apart by a legend. All names are escaped: a trace's file name is the user's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from math import floor, log10

from warmlane.router.sim.replay_report import Summary, rows

_COLOURS = ("#1f6fb2", "#d1603d", "#3a8f5c", "#8a5fb0", "#b08a1e", "#5b6770", "#c2477f", "#2a9d9d")
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem;
  color: #1d2329; background: #fff }
h1 { font-size: 1.4rem } h2 { font-size: 1.05rem; margin: 2rem 0 .4rem }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #dde2e6;
  white-space: nowrap }
th:first-child, td:first-child { text-align: left }
.charts { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem }
svg { max-width: 100%; height: auto } text { fill: #1d2329; font: 12px system-ui, sans-serif }
p { max-width: 60rem }
"""


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _bars(
    title: str,
    summaries: Sequence[Summary],
    value: Callable[[Summary], float],
    show: Callable[[float], str],
) -> str:
    """Horizontal bars from zero, one a policy."""
    left, width, step = 130, 290, 24
    top = max((value(each) for each in summaries), default=0.0) or 1.0
    height = step * len(summaries) + 8
    parts = [f'<svg viewBox="0 0 500 {height}" width="500" role="img" aria-label="{title}">']
    for number, each in enumerate(summaries):
        y, length = 4 + step * number, width * value(each) / top
        parts.append(
            f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">{escape(each.policy)}</text>'
            f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{step - 6}" rx="2"'
            f' fill="{_colour(number)}"/>'
            f'<text x="{left + length + 6:.1f}" y="{y + 14}">{show(value(each))}</text>'
        )
    return f"<div><h2>{title}</h2>{''.join(parts)}</svg></div>"


def _curves(summaries: Sequence[Summary]) -> str:
    """Share of requests over TTFT, the latter on a logarithmic axis."""
    points = [value for each in summaries for value in each.curve if value > 0]
    if not points:
        return ""
    low, high = floor(log10(min(points))), log10(max(points)) + 0.05
    left, top, width, height = 50, 12, 620, 260
    parts = [
        f'<svg viewBox="0 0 860 {height + 60}" width="860" role="img" aria-label="TTFT curves">'
    ]

    def x(value: float) -> float:
        return left + width * (log10(max(value, 10.0**low)) - low) / (high - low)

    for power in range(low, floor(high) + 1):
        at = x(10.0**power)
        parts.append(
            f'<line x1="{at:.1f}" y1="{top}" x2="{at:.1f}" y2="{top + height}" stroke="#e3e7ea"/>'
            f'<text x="{at:.1f}" y="{top + height + 18}" text-anchor="middle">{10.0**power:g} s'
            "</text>"
        )
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = top + height * (1 - share)
        parts.append(
            f'<line x1="{left}" y1="{y}" x2="{left + width}" y2="{y}" stroke="#e3e7ea"/>'
            f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{share:.0%}</text>'
        )
    for number, each in enumerate(summaries):
        last = max(1, len(each.curve) - 1)
        line = " ".join(
            f"{x(value):.1f},{top + height * (1 - place / last):.1f}"
            for place, value in enumerate(each.curve)
        )
        y = top + 10 + 18 * number
        parts.append(
            f'<polyline points="{line}" fill="none" stroke="{_colour(number)}" stroke-width="2"/>'
            f'<rect x="{left + width + 16}" y="{y - 9}" width="14" height="10"'
            f' fill="{_colour(number)}"/>'
            f'<text x="{left + width + 36}" y="{y}">{escape(each.policy)}</text>'
        )
    return "<h2>Requests with a first token by then</h2>" + "".join(parts) + "</svg>"


def page(title: str, notes: Sequence[str], summaries: Sequence[Summary]) -> str:
    """The whole report. notes: lines of plain text above the table."""
    head, *lines = rows(summaries)
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>" for line in lines
    )

    def seconds(value: float) -> str:
        return f"{value:.3g} s"

    def share(value: float) -> str:
        return f"{value:.1%}"

    charts = "".join(
        (
            _bars("Mean TTFT", summaries, lambda each: each.ttft.mean, seconds),
            _bars("p99 TTFT", summaries, lambda each: each.ttft.p99, seconds),
            _bars("Mean E2E", summaries, lambda each: each.e2e.mean, seconds),
            _bars("Goodput", summaries, lambda each: each.goodput, share),
            _bars("Prompt tokens from cache", summaries, lambda each: each.hit, share),
            _bars(
                "Mean TPOT",
                summaries,
                lambda each: 1000 * each.tpot.mean,
                lambda value: f"{value:.1f} ms",
            ),
        )
    )
    told = "".join(f"<p>{escape(note)}</p>" for note in notes)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>{told}"
        f'<div class="scroll"><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>'
        f'</div><div class="charts">{charts}</div>{_curves(summaries)}</body></html>\n'
    )
