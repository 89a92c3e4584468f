"""The thin reader of the Prometheus text format: exact on good text, harmless on bad text."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from warmlane.router.feeds import prom_text
from warmlane.router.feeds.prom_text import Sample, label, samples

GOLDEN = Path(__file__).parents[2] / "golden" / "metrics"
RECORDED = sorted(GOLDEN.glob("*.txt.gz"))


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.name)
def test_agrees_with_the_full_parser_on_every_family_of_a_recorded_scrape(path: Path) -> None:
    text = gzip.decompress(path.read_bytes())
    expected: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            expected.setdefault(sample.name, []).append((sample.labels, sample.value))
    assert len(expected) > 50
    for name, wanted in expected.items():
        got = samples(text, name.encode())
        assert [sample.value for sample in got] == [value for _, value in wanted], name
        for sample, (labels, _) in zip(got, wanted, strict=True):
            for key, value in labels.items():
                assert label(sample.labels, key.encode()) == value


def test_a_name_is_matched_whole() -> None:
    text = b'# HELP a_b x\na_b_c{x="1"} 1\nx_a_b 2\na_b{x="2"} 3\na_b 4\n'
    assert samples(text, b"a_b") == [Sample(b'x="2"', 3.0), Sample(b"", 4.0)]
    assert samples(text, b"a") == []


def test_scattered_samples_of_a_family_are_all_found() -> None:
    assert [s.value for s in samples(b"a 1\nb 2\na 3\n\na 4\n", b"a")] == [1, 3, 4]


@pytest.mark.parametrize(
    ("line", "value"),
    [
        (b"a 1", 1.0),
        (b"a\t1e3", 1000.0),
        (b"a{} 2 1700000000000", 2.0),
        (b"a{} 2\r", 2.0),
        (b'a{b="} 9",} 2', 2.0),
        (b'a{b="x"} 5 # {trace="1"} 1 2', 5.0),
    ],
)
def test_legal_variants(line: bytes, value: float) -> None:
    assert [s.value for s in samples(line + b"\n", b"a")] == [value]


@pytest.mark.parametrize(
    "line",
    [b"a", b"a ", b"a x", b"a{", b'a{b="} 1', b"a NaN", b"a +Inf", b"a 1 2 3", b'a{b="\\"} 1'],
)
def test_what_does_not_parse_is_left_out(line: bytes) -> None:
    assert samples(b"a 7\n" + line + b"\na 8\n", b"a") == [Sample(b"", 7.0), Sample(b"", 8.0)]


def test_a_cut_off_last_line_does_not_count() -> None:
    assert samples(b"a 1\na 10", b"a") == [Sample(b"", 1.0)]


def test_escapes_and_names_inside_values() -> None:
    labels = rb'x="say \"engine=\"",engine="a\\b\nc"'
    assert label(labels, b"engine") == "a\\b\nc"
    assert label(labels, b"x") == 'say "engine="'
    assert label(labels, b"ngine") is None


def test_samples_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prom_text, "MAX_SAMPLES", 10)
    assert len(samples(b"a 1\n" * 100, b"a")) == 10


def test_a_hostile_label_costs_linear_time() -> None:
    text = b'a{b="' + b"\\" * 400_001 + b'"} 1\n' + b'a{b="' + b'"",' * 100_000 + b"} 1\n"
    assert samples(text, b"a") == []  # would run for hours if it backtracked


@given(st.dictionaries(st.text(max_size=20), st.floats(allow_nan=False, allow_infinity=False)))
def test_reads_what_the_client_library_writes(values: dict[str, float]) -> None:
    registry = CollectorRegistry()
    gauge = Gauge("warm", "help", ["who"], registry=registry)
    for who, value in values.items():
        gauge.labels(who).set(value)
    got = samples(generate_latest(registry), b"warm")
    assert {label(s.labels, b"who"): s.value for s in got} == values


@given(st.binary(max_size=200))
def test_garbage_never_raises(noise: bytes) -> None:
    for sample in samples(b"a{" + noise + b"\n" + noise + b"\na 1\n", b"a"):
        label(sample.labels, b"x")


@pytest.mark.parametrize("step", [1, 997])
def test_any_cut_gives_a_prefix_of_the_samples(step: int) -> None:
    whole = gzip.decompress(RECORDED[0].read_bytes())[-6000:] if step == 1 else None
    text = whole or gzip.decompress(RECORDED[0].read_bytes())
    name = b"vllm:cache_config_info" if step == 1 else b"vllm:time_to_first_token_seconds_bucket"
    full = samples(text, name)
    for end in range(0, len(text), step):
        cut = samples(text[:end], name)
        assert cut == full[: len(cut)]
