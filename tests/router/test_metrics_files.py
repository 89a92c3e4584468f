"""docs/metrics.md, the dashboard and the alert rules speak of families that exist, and of all."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from warmlane.router.feeds.dialects import DIALECTS
from warmlane.router.metrics import FAMILIES

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "deploy" / "grafana" / "warmlane.json"
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yaml"
DOCS = ROOT / "docs" / "metrics.md"

LABELS = {family.name: set(family.labels) for family in FAMILIES}
KINDS = {family.name: family.kind for family in FAMILIES}
NAME = re.compile(r"\bwarmlane_[a-z_]+\b")
# Labels that Prometheus itself adds, and names of the client library's process collector.
ADDED = {"instance", "job", "le"}
PROCESS = {"process_cpu_seconds_total", "process_resident_memory_bytes"}


def family_of(name: str) -> str:
    """The family that a series name belongs to; AssertionError when there is none."""
    if name not in KINDS:
        base = re.sub(r"_(bucket|count|sum)$", "", name)
        assert KINDS.get(base) == "histogram", f"{name} is not exported"
        return base
    assert KINDS[name] != "histogram", f"{name} has _bucket, _count and _sum only"
    return name


def check_expression(expression: str) -> None:
    """Names exist, label matchers are labels of their family, counters are used as rates."""
    names = NAME.findall(expression)
    assert names or any(name in expression for name in PROCESS) or "up{" in expression
    for name, matchers in re.findall(r"\b(warmlane_[a-z_]+)(?:\{([^}]*)\})?", expression):
        family = family_of(name)
        for label in re.findall(r"(\w+)\s*[=!]~?", matchers):
            assert label in LABELS[family] | ADDED, f"{name} has no label {label}"
        if KINDS[family] == "counter" or name.endswith("_bucket"):
            used = rf"(rate|increase)\({re.escape(name)}(\{{[^}}]*\}})?\["
            assert re.search(used, expression), f"{name} grows for ever: take its rate"
    allowed = set().union(*(LABELS[family_of(name)] for name in names)) if names else set()
    for grouping in re.findall(r"\bby \(([^)]*)\)", expression):
        for label in re.split(r",\s*", grouping):
            assert label in allowed | ADDED, f"{label} is no label in {expression}"


def panels() -> list[dict[str, Any]]:
    dashboard = json.loads(DASHBOARD.read_text())
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_each_panel_asks_for_what_is_exported(panel: dict[str, Any]) -> None:
    assert panel["targets"]
    for target in panel["targets"]:
        check_expression(target["expr"])
        legend = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        grouped = set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", target["expr"]))))
        assert legend <= grouped | {"instance"}, f"{legend} is not in {target['expr']}"


def test_panels_have_ids_and_places_of_their_own() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    cells = [
        (x, y)
        for panel in dashboard["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


def test_the_dashboard_shows_every_family() -> None:
    shown = {family_of(name) for name in NAME.findall(DASHBOARD.read_text())}
    alerted = {family_of(name) for name in NAME.findall(ALERTS.read_text())}
    missing = set(KINDS) - shown - alerted - {"warmlane_replica_asleep"}
    assert missing == set()


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_each_alert_asks_for_what_is_exported(rule: dict[str, Any]) -> None:
    check_expression(rule["expr"])
    assert rule["labels"]["severity"] in ("warning", "critical")
    used = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
    kept = set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", rule["expr"]))))
    assert used <= kept | {"instance"}, f"{used - kept} is summed away in {rule['expr']}"


def test_alert_names_are_distinct() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names))


def test_the_docs_table_is_the_table_of_families() -> None:
    text = DOCS.read_text()
    rows = [line for line in text.splitlines() if line.startswith("| `warmlane_")]
    assert rows == [
        f"| `{f.name}` | {f.kind} | {', '.join(f.labels) or '-'} | {f.help} |" for f in FAMILIES
    ]
    for name in NAME.findall(text):
        assert name in KINDS


def test_the_docs_name_every_source_of_every_dialect() -> None:
    text = DOCS.read_text()
    for dialect in DIALECTS:
        for source in (dialect.waiting, dialect.running, dialect.kv_usage):
            assert source.families[0].decode() in text
        for sources in (dialect.prefix_hits, dialect.num_blocks):
            for source in sources:
                name = (source.from_label or source.families[0]).decode()
                assert name in text or name == "num_pages"


@pytest.mark.parametrize(
    "expression",
    [
        "warmlane_no_such_thing",
        'rate(warmlane_requests_total{user="x"}[5m])',
        "sum(warmlane_requests_total)",
        "warmlane_ttft_seconds",
        "sum by (user) (rate(warmlane_requests_total[5m]))",
    ],
)
def test_the_check_itself_can_fail(expression: str) -> None:
    with pytest.raises(AssertionError):
        check_expression(expression)
