"""`warmlane replay`: policies against each other in the lab, and what is told of it."""

from __future__ import annotations

import gzip
import json
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from warmlane.router.cli import main
from warmlane.router.config import PoolConfig
from warmlane.router.sim.chance import Chance
from warmlane.router.sim.lab import Lab
from warmlane.router.sim.lab_adapters import AdapterLab, AdapterWorkload
from warmlane.router.sim.lab_run import Done, LabOptions, Run
from warmlane.router.sim.replay import Sample, compare, fleet_of, pool_for
from warmlane.router.sim.replay_report import Interval, Slo, Summary, figures, paired
from warmlane.router.sim.replay_workloads import (
    SHARED,
    parse_shared,
    shared_prefix,
    window,
    workload,
)
from warmlane.router.sim.statistics import describe
from warmlane.router.sim.traces import Session, TraceError, Turn, Workload
from warmlane.router.sim.workload import cut, generate

OPTIONS = LabOptions(seed=5)


def unshared(requests: int, rate: float, seed: int) -> Workload:
    """Open loop, Poisson, log-normal lengths, no two prompts with a block in common."""
    chance = Chance(seed)
    sessions, at_s = [], 0.0
    for number in range(requests):
        prompt = min(16_000, max(16, int(chance.lognormal(900, 1800))))
        output = max(1, int(chance.lognormal(120, 200)))
        turn = Turn(prompt, output, 0.0, 0.0, ((number << 20, -(-prompt // 64)),))
        sessions.append(Session(str(number), at_s, (turn,)))
        at_s += chance.exponential(1.0 / rate)
    return Workload(name="unshared", block_size=64, sessions=tuple(sessions))


def by_policy(workloads: list[Workload], policies: str, **more: object) -> dict[str, Summary]:
    samples = [Sample(str(n), n + 1, each) for n, each in enumerate(workloads)]
    options = msgspec.structs.replace(OPTIONS, **more)
    found = compare(samples, policies.split(), options, Slo())
    return {each.policy: each for each in found}


@pytest.mark.parametrize("rate", [8.0, 40.0, 70.0])
def test_default_is_never_worse_than_least_requests_when_nothing_is_shared(rate: float) -> None:
    """Over several seeds: mean and tail of TTFT and latency; 3 % is the noise between seeds."""
    found = by_policy([unshared(900, rate, seed) for seed in (1, 2, 3)], "default least-requests")
    mine, theirs = found["default"], found["least-requests"]
    assert mine.ttft.mean <= 1.03 * theirs.ttft.mean
    assert mine.ttft.p99 <= 1.03 * theirs.ttft.p99
    assert mine.e2e.mean <= 1.03 * theirs.e2e.mean
    assert mine.hit == 0.0 and mine.failed == 0


@pytest.mark.parametrize(("profile", "sessions"), [("chat", 120), ("agent", 60)])
def test_rank_order_on_shared_prefixes(profile: str, sessions: int) -> None:
    """Cache-aware before load-only: more hits and a shorter mean TTFT, no request lost."""
    made = generate(profile, sessions)
    found = by_policy([made], "default least-requests round-robin", rate=4.0)
    for policy in ("least-requests", "round-robin"):
        assert found["default"].hit > found[policy].hit + 0.08
        assert found["default"].ttft.mean < found[policy].ttft.mean
    assert {each.requests for each in found.values()} == {made.requests}
    assert {each.failed for each in found.values()} == {0}


def test_rank_order_when_the_cache_is_the_bottleneck() -> None:
    """Long sessions on small caches: round robin thrashes, cache-aware routing keeps its hits."""
    made = cut(generate("coding", 12), turns=15)
    more = {"kv_tokens": 200_000, "rate": 8.0, "think_cap_s": 10.0}
    found = by_policy([made], "default round-robin", **more)
    assert found["default"].hit > found["round-robin"].hit + 0.25
    assert found["default"].ttft.mean < 0.5 * found["round-robin"].ttft.mean


def test_no_ticket_is_left() -> None:
    lab = Lab(generate("chat", 40), PoolConfig(), OPTIONS)
    lab.run()
    assert [seat.router.open_tickets for seat in lab.seats] == [0]


def test_figures_of_a_run() -> None:
    done = [
        Done(0.0, 1.0, 2.0, 100, 50, 21, 60, 0),  # good: 50 ms a token
        Done(0.0, 1.0, 2.1, 100, 0, 21, 0, 0),  # 55 ms a token
        Done(0.0, 2.5, 2.5, 100, 0, 1, 0, 1),  # late
        Done(0.0, 2.0, 2.0, 100, 0, 1, 0, 1),  # good: one token has no time per token
    ]
    told = {"fallbacks": 2, "preemptions": 1, "makespan_s": 9.0}
    run = Run(policy="a", done=done, failed=1, skipped=0, busy_s=[3.0, 1.0], **told)
    found = figures(run, Slo())
    assert found.goodput == pytest.approx(2 / 5)
    assert found.hit == pytest.approx(50 / 400)
    assert found.predicted_hit_tokens == 60
    assert found.spread == pytest.approx(1.5)
    assert found.tpot.mean == pytest.approx((0.05 + 0.055) / 2)
    assert (found.curve[0], found.curve[-1]) == (1.0, 2.5)


def test_figures_leave_the_warm_up_out() -> None:
    done = [Done(at, 1.0 + at, 9.0, 100, 0, 5, 0, 0) for at in (0.0, 5.0, 6.0)]
    told = {"fallbacks": 0, "preemptions": 0, "makespan_s": 9.0, "failed": 0, "skipped": 0}
    run = Run(policy="a", done=done, busy_s=[1.0], **told)
    assert figures(run, Slo(), 5.0).ttft.mean == pytest.approx(6.5)
    assert figures(run, Slo()).requests == 3


def test_paired_intervals() -> None:
    assert paired([2.0, 4.0, 8.0], [1.0, 2.0, 4.0]) == Interval(
        pytest.approx(2.0), pytest.approx(2.0), pytest.approx(2.0)
    )
    found = paired([1.0, 4.0], [1.0, 1.0])  # logs 0 and 1.386: error .693, t = 12.71
    assert found is not None and found.ratio == pytest.approx(2.0)
    assert found.low is not None and found.low == pytest.approx(2.0 * 2.0**-12.71)
    assert paired([3.0], [2.0]) == Interval(1.5, None, None)
    assert paired([3.0, 0.0], [2.0, 1.0]) is None


def test_shared_prefixes_share_their_system_prompt() -> None:
    made = shared_prefix(SHARED["shared-sglang"], 1)
    assert made.requests == 64 * 16
    found = describe(made)
    assert found.prompt.p50 == found.prompt.max == 2048 + 128
    # All but the first of each group find the system prompt.
    assert found.shared == pytest.approx(2048 / 2176 * 15 / 16, abs=0.001)
    assert shared_prefix(SHARED["shared-sglang"], 1) == made
    assert shared_prefix(SHARED["shared-sglang"], 2) != made
    assert parse_shared("shared-prefix:groups=3,rate=2.5").rate == 2.5
    for wrong in ("groups=0", "grups=1", "rate=0", "rate=x", "groups=9999999,prompts=99"):
        with pytest.raises(TraceError):
            parse_shared(f"shared-prefix:{wrong}")


def test_windows_are_disjoint_and_whole() -> None:
    made = generate("chat", 30)
    parts = [window(made, n / 3, (n + 1) / 3) for n in range(3)]
    assert [s for part in parts for s in part.sessions] == list(made.sessions)
    assert all(part.sessions for part in parts)


def test_a_mixed_fleet_takes_profiles_in_turn() -> None:
    fleet = fleet_of("llama-3.1-8b/h100,llama-3.1-8b/a100", 5)
    assert [each.step_tokens for each in fleet] == [8192, 2048, 8192, 2048, 8192]
    fast, slow = (
        pool_for("llmd-affinity", fleet_of(f"llama-3.1-8b/{gpu}", 1)) for gpu in ("h100", "a100")
    )
    taus = [pool.scorers[0]["tau_tokens"] for pool in (fast, slow)]  # type: ignore[index]
    assert 500_000 < taus[0] < 800_000 and taus[1] < taus[0] / 2


ROW = {"timestamp": 0, "input_length": 700, "output_length": 5, "hash_ids": [1, 2]}


@pytest.mark.parametrize("packed", [False, True])
def test_a_trace_is_known_by_its_content(tmp_path: Path, packed: bool) -> None:
    text = "".join(json.dumps(ROW | {"timestamp": 100 * n}) + "\n" for n in range(9))
    path = tmp_path / ("mine.jsonl.gz" if packed else "mine.jsonl")
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    assert workload(str(path)).requests == 9
    assert workload(str(path), kind="mooncake").block_size == 512
    with pytest.raises(TraceError):
        workload(str(path), kind="azure_llm")


class Page(HTMLParser):
    """What a report holds."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [str(value) for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_command_tells_the_same_in_three_ways(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told, shown = tmp_path / "out.json", tmp_path / "out.html"
    words = [
        "replay",
        "chat",
        "--sessions",
        "10",
        "--seeds",
        "2",
        "--policy",
        "lmetric,round-robin",
    ]
    words += ["--speeds", "1,0.5", "--fail", "0@2", "--kv-scale", "0.5", "--view", "exact"]
    assert main([*words, "--json", str(told), "--html", str(shown)]) == 0
    out = capsys.readouterr().out
    report = json.loads(told.read_text())
    names = [each["policy"] for each in report["policies"]]
    assert names == ["lmetric", "round-robin"]
    first = report["policies"][0]
    assert len(first["samples"]) == 2 and first["ttft_ratio"]["ratio"] == 1.0
    assert report["policies"][1]["ttft_ratio"]["low"] is not None
    assert report["arguments"]["seeds"] == 2
    line = next(line for line in out.splitlines() if line.startswith("lmetric"))
    assert f"{first['ttft']['mean']:.3f}" in line
    page = Page()
    page.feed(shown.read_text())
    assert page.tags.count("svg") == 7 and "polyline" in page.tags
    assert page.links == [] and "script" not in page.tags
    assert "round-robin" in page.words


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["nowhere.jsonl"],
        ["chat", "--policy", "best"],
        ["chat", "--policy", ","],
        ["chat", "--profile", "abacus"],
        ["chat", "--replicas", "0"],
        ["chat", "--rate-scale", "0"],
        ["chat", "--rate-scale", "nan"],
        ["chat", "--seeds", "0"],
        ["chat", "--speeds", "1,x"],
        ["chat", "--speeds", "0"],
        ["chat", "--fail", "4@1"],
        ["chat", "--fail", "soon"],
        ["chat", "--windows", "5000"],
        ["chat", "--json", "/nowhere/at/all.json"],
        ["shared-prefix:groups=x"],
        ["chat", "--adapters", "10"],
        ["--adapters", "-1"],
        ["--adapters", "10", "--lora-slots", "0"],
        ["--adapters", "10", "--zones", "a,b"],
        ["--adapters", "10", "--html", "x.html"],
        ["--adapters", "10", "--policy", "dynamo"],
        ["--adapters", "10", "--policy", "best"],
        ["--adapters", "10", "--adapter-load", "nan"],
        ["--adapters", "10", "--profile", "llama-3.1-8b/h100,qwen3-32b/h200"],
        ["--adapters", "10", "--seeds", "0"],
    ],
)
def test_bad_input_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", *words]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("warmlane replay: ") and told.err.count("\n") == 1


def test_lists(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", "--policy", "list"]) == 0
    assert {"default", "round-robin", "dynamo", "sglang"} <= {*capsys.readouterr().out.split()}
    assert main(["replay", "--profile", "list"]) == 0
    assert "qwen3-32b/2xh100" in capsys.readouterr().out


def test_adapters_in_place_of_a_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table, the JSON, and the same run as the lab of adapters gives."""
    told = tmp_path / "told.json"
    words = ["--adapters", "24", "--lora-slots", "3", "--replicas", "3", "--adapter-seconds", "40"]
    words += ["--rate-scale", "0.3", "--seeds", "2", "--policy", "default,random,round-robin"]
    assert main(["replay", *words, "--json", str(told)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("5") and " requests for 24 adapters in 2 sample(s)" in out
    report = json.loads(told.read_text())
    ours, chance, turns = report["policies"]
    assert [each["policy"] for each in report["policies"]] == ["default", "random", "round-robin"]
    assert ours["ttft_ratio"]["ratio"] == 1.0 < chance["ttft_ratio"]["ratio"]
    assert ours["hit"] > chance["hit"] + 0.1 and ours["met"] <= ours["hit"]
    assert turns["requests"] == ours["requests"]
    load = AdapterWorkload(
        adapters=24, slots=3, replicas=3, seconds=40.0, rate=AdapterWorkload().rate * 0.3
    )
    runs = [
        AdapterLab("warmlane", msgspec.structs.replace(load, seed=seed)).run() for seed in (1, 2)
    ]
    assert ours["loads"] == sum(run.loads for run in runs)
    assert ours["requests"] == sum(run.requests for run in runs)
    line = next(line for line in out.splitlines() if line.startswith("default"))
    assert f"{ours['hit']:.1%}" in line and f"{ours['ttft']['p99']:.3f}" in line
