"""What the main job shows: progress, the table, the line to try. Plain text when not a tty."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from warmlane.router.sim.demo_run import Measured, kv_tokens
from warmlane.router.sim.demo_slices import MODEL, Slice
from warmlane.router.sim.player import Result
from warmlane.router.sim.timing import DEFAULT_PRESET
from warmlane.router.sim.traces import Workload


class View:
    """Prints to one console."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)

    def say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True)

    def headline(self, workload: Workload, piece: Slice, replicas: int) -> None:
        """What is about to be played, with everything that was scaled."""
        say = self.say
        sessions = len(workload.sessions)
        say(f"[bold]{workload.name}[/]: {workload.requests} requests in {sessions} sessions")
        say(f"  {workload.note}")
        say(
            f"  {replicas} embedded replicas modelled as {DEFAULT_PRESET}, "
            f"{kv_tokens(piece):,} tokens of KV cache each, {piece.speed:g}x real time"
        )
        scaled = []
        if piece.skip:
            scaled.append(f"first {piece.skip} sessions skipped")
        if piece.turns:
            scaled.append(f"at most {piece.turns} turns a session")
        if piece.shrink != 1:
            scaled.append(
                f"prompts {piece.shrink:g}x shorter on the wire (a token costs as "
                f"{piece.shrink:g} real ones)"
            )
        if piece.output_shrink != 1:
            scaled.append(f"answers {piece.output_shrink:g}x shorter")
        if piece.rate != 1:
            scaled.append(f"arrivals {piece.rate:g}x denser")
        scaled.append(f"think times at most {piece.think_cap_s:g} s")
        say(f"  [dim]scaled: {', '.join(scaled)}[/]")

    def bar(self, title: str, total: int) -> Bar:
        return Bar(self.console, title, total)

    def table(self, rows: list[Measured]) -> None:
        """One column a policy, the last compared with the first."""
        base, own = rows[0], rows[-1]
        void = any(row.void for row in rows)
        table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
        table.add_column("")
        for row in rows:
            style = "bold green" if row is own and len(rows) > 1 else ""
            table.add_column(name_of(row.policy), justify="right", style=style)
        table.add_column("", style="dim")

        def line(title: str, cells: list[str], note: str = "") -> None:
            table.add_row(title, *cells, note)

        hits = [f"{row.hit_tokens:,}" for row in rows]
        more = own.hit_tokens / base.hit_tokens if base.hit_tokens else 0.0
        line("prompt tokens hit", hits, f"{more:.2f}x" if more else "")
        line("share of prompt tokens", [f"{row.hit_share:.1%}" for row in rows])
        for name, read in PERCENTILES:
            cells = [f"({read(row):.3f} s)" if void else f"{read(row):.3f} s" for row in rows]
            note = "void" if void else compared(read(base), read(own))
            line(f"TTFT {name}", cells, note)
        line("load, max / mean", [f"{row.spread:.2f}" for row in rows])
        line("errors", [str(len(row.errors)) for row in rows])
        self.console.print(table)
        self.say(
            "[dim]hits by the engines' own counters (vllm:prefix_cache_hits_total); times in "
            "seconds of the replicas' clock;\nload: busy time of the busiest replica over the "
            "mean of all[/]"
        )
        if void:
            late = max(row.lag_s for row in rows)
            outside = max(row.outside_s for row in rows)
            self.say(
                f"[bold red]times void[/]: event loops were up to {late:.3f} s late and a mean of "
                f"{outside:.3f} s passed outside the replicas\n(replica time): this machine is too "
                "busy to time them; hits and errors stand"
            )
        for row in rows:
            for error in sorted(set(row.errors))[:3]:
                self.console.print(Text(f"error ({name_of(row.policy)}): {error}", style="red"))

    def invitation(self, url: str, admin_url: str) -> None:
        """The line to try, as one line without markup or wrapping, so that it can be copied."""
        self.say(f"\nwarmlane goes on at {url} (metrics: {admin_url}/metrics). Try:\n")
        body = (
            f'{{"model": "{MODEL}", "messages": [{{"role": "user", "content": "Hello"}}], '
            f'"max_tokens": 40, "stream": true}}'
        )
        line = f"curl -N {url}/v1/chat/completions -H 'content-type: application/json' -d '{body}'"
        self.console.print(Text(line), soft_wrap=True)
        self.say("\nCtrl-C ends it.")


def name_of(policy: str) -> str:
    return "warmlane" if policy == "default" else policy


def compared(base_s: float, own_s: float) -> str:
    """How many times lower (or higher) a time is than the base's; "" if one is missing."""
    if base_s <= 0 or own_s <= 0:
        return ""
    return f"{base_s / own_s:.2f}x lower" if own_s <= base_s else f"{own_s / base_s:.2f}x higher"


PERCENTILES: list[tuple[str, Callable[[Measured], float]]] = [
    ("p50", lambda row: row.ttft_p50_s),
    ("p90", lambda row: row.ttft_p90_s),
    ("p99", lambda row: row.ttft_p99_s),
]


class Bar:
    """A progress bar of one run with a live hit share; nothing but two lines when not a tty."""

    def __init__(self, console: Console, title: str, total: int) -> None:
        self._console = console
        self._title = title
        self._total = total
        self._done = self._prompt = self._cached = self._failed = 0
        self._progress: Progress | None = None
        if console.is_terminal:
            self._progress = Progress(
                SpinnerColumn(),
                TextColumn("{task.description:<12}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[live]}"),
                TimeElapsedColumn(),
                console=console,
                refresh_per_second=5,
            )
            self._task = self._progress.add_task(title, total=total, live="")

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
        else:
            self._console.print(f"{self._title}: {self._done}/{self._total} {self._live()}")

    @property
    def on_result(self) -> Callable[[Result], None]:
        return self._note

    def _note(self, result: Result) -> None:
        self._done += 1
        self._prompt += result.prompt
        self._cached += result.cached
        self._failed += bool(result.error)
        if self._progress is not None:
            self._progress.update(self._task, completed=self._done, live=self._live())

    def _live(self) -> str:
        share = self._cached / self._prompt if self._prompt else 0.0
        return f"hit {share:.0%}" + (f", {self._failed} failed" if self._failed else "")
