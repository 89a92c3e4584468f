"""The benchmark table of README.md, made from the committed results of the proxy benchmark.

PYTHONPATH=. python -m benchmarks.table      # writes it between its two markers
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"
RESULTS = HERE / "results" / "proxy.json"
BEGIN, END = "<!-- table: benchmarks/results/proxy.json -->\n", "<!-- end -->"
ROWS = ("warmlane", "nginx", "aiohttp", "aiohttp-uvloop", "sglang-router", "vllm-router")


def number(value: float) -> str:
    """Three significant digits, thousands apart."""
    digits = f"{value:.3g}"
    return f"{float(digits):,.0f}" if value >= 100 else digits


def table(report: dict[str, Any]) -> str:
    """Markdown rows: requests per CPU-second at both sizes, and what a router adds to the TTFT."""
    notes = {name: note["value"] for name, note in report["notes"].items()}
    mine = {size: notes[f"warmlane_{size}"] for size in ("4k", "64k")}
    lines = [
        "| router | 4 KB, requests per CPU-second | 64 KB | added TTFT p50, ms |",
        "| --- | --- | --- | --- |",
    ]
    for name in ROWS:
        if f"{name}_4k" not in notes:
            continue
        cells = []
        for size in ("4k", "64k"):
            rate = notes[f"{name}_{size}"]
            times = "" if name == "warmlane" else f" (warmlane: {mine[size] / rate:.2g} x)"
            cells.append(number(rate) + times)
        lines.append(
            f"| {name} | {cells[0]} | {cells[1]} | {notes[f'{name}_added_ttft_p50']:.2f} |"
        )
    machine = report["machine"]
    lines.append("")
    lines.append(f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}.")
    return "\n".join(lines) + "\n"


def filled(text: str, report: dict[str, Any]) -> str:
    """README text with the table between the markers renewed."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + table(report) + END + rest.split(END, 1)[1]


def main() -> None:
    README.write_text(filled(README.read_text(), json.loads(RESULTS.read_text())))


if __name__ == "__main__":
    main()
