"""The result of `warmlane audit` as one reads it. Floor 8."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from warmlane.router.audit_report import Report
from warmlane.router.audit_sums import Range


def show(report: Report, console: Console) -> None:
    """A row a replica, then the sums, then what is missing."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("replica", no_wrap=True)
    table.add_column("events", no_wrap=True)
    for name in ("blocks held", "tokens computed", "held elsewhere", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in report.replicas:
        part = each.recomputed / each.computed if each.computed else None
        table.add_row(
            escape(each.replica),
            each.view,
            f"{each.blocks:,}",
            f"{each.computed:,.0f}",
            f"{each.recomputed:,.0f}",
            "-" if part is None else f"{100 * part:.1f} %",
        )
    console.print(table)
    for line in lines(report):
        console.print(escape(line), highlight=False)


def lines(report: Report) -> list[str]:
    """The sums, one a line."""
    size = report.duplicated_bytes
    bytes_told = f", {size / 2**30:.2f} GiB" if size is not None else ""
    out = [
        f"listened for {report.seconds:.0f} s",
        f"duplicated: {report.duplicated_blocks:,} blocks ({report.duplicated_tokens:,} tokens"
        f"{bytes_told}) beside {report.distinct_blocks:,} distinct ones",
    ]
    if report.recomputed_share is not None:
        out.append(
            f"recomputed although another replica held it: {report.recomputed:,.0f} of "
            f"{report.computed:,.0f} prompt tokens computed ({100 * report.recomputed_share:.1f} %)"
        )
    if report.saving is not None:
        out.append(
            f"predicted saving: {_range(report.saving.times(100), 1)} % of prefill "
            "(low: only while no other holder had a queue; high: all of it; 90 % of resamples)"
        )
    if report.gpu_hours_a_day is not None:
        paces = " and ".join(f"{1 / pace:,.0f}" for pace in report.prefill_s_a_token)
        out.append(
            f"that costs {_range(report.gpu_hours_a_day, 2)} GPU-hours a day, at {paces} prompt "
            f"tokens a second of prefill (by {report.prefill_from}: meanwhile, since start)"
        )
    return out + [f"note: {note}" for note in report.notes]


def _range(value: Range, digits: int) -> str:
    low, middle, high = (f"{n:,.{digits}f}" for n in (value.low, value.expected, value.high))
    return f"{middle} ({low} to {high})"
