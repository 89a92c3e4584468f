"""Loaders: hand-made files of each format, errors, and the real files' published statistics."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from warmlane.router.sim.statistics import describe
from warmlane.router.sim.traces import TraceError, compress, find_traces, load

TRACES = find_traces(os.environ, Path(__file__))


def write(path: Path, *rows: Any) -> Path:
    text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def blocks(path: Path) -> list[list[list[int]]]:
    return [[list(turn.blocks()) for turn in s.turns] for s in load(path).sessions]


def test_mooncake_requests_are_sessions_of_one_turn(tmp_path: Path) -> None:
    path = write(
        tmp_path / "mooncake_x.jsonl.gz",
        {"timestamp": 1500, "input_length": 600, "output_length": 7, "hash_ids": [0, 1]},
        {"timestamp": 500, "input_length": 1100, "output_length": 0, "hash_ids": [0, 5, 6]},
    )
    workload = load(path)
    assert workload.block_size == 512
    assert [session.start_s for session in workload.sessions] == [0.5, 1.5]
    assert blocks(path) == [[[0, 5, 6]], [[0, 1]]]
    assert workload.sessions[0].turns[0].output == 1


def test_conversation_batches_are_spread_over_their_three_seconds(tmp_path: Path) -> None:
    row = {"timestamp": 3000, "input_length": 5, "output_length": 1, "hash_ids": [0]}
    starts = [
        s.start_s
        for s in load(write(tmp_path / "mooncake_conversation.jsonl", *[row] * 50)).sessions
    ]
    assert 3.0 <= min(starts) < 3.5
    assert 5.5 < max(starts) < 6.0


def test_delta_form_keeps_and_adds(tmp_path: Path) -> None:
    requests = [
        {"in": 50, "out": 3, "keep": 0, "add": [[0, 3]]},
        {"in": 60, "out": 3, "keep": 2, "add": [[9, 1], [4, 2]]},
        {"in": 70, "out": 3, "keep": 3, "add": [[10, 1]]},
    ]
    path = write(tmp_path / "taubench_x.jsonl", {"session": "a", "requests": requests})
    assert blocks(path) == [[[0, 1, 2], [0, 1, 9, 4, 5], [0, 1, 9, 10]]]
    turns = load(path).sessions[0].turns
    assert turns[0].think_s == 0.0
    assert turns[1].think_s > 0.0


def test_agentic_sessions_share_tools_and_system_prompt_only(tmp_path: Path) -> None:
    def session(name: str, tools: int, system: int) -> dict[str, Any]:
        return {
            "session": name,
            "block_size": 64,
            "tool_tokens": tools,
            "system_tokens": system,
            "requests": [
                {"t": 0.0, "in": 320, "out": 9, "think": 0, "keep": 0, "add": [[0, 5]]},
                {"t": 3.0, "sub": [{"t": 1.0, "in": 70, "out": 2, "keep": 0, "add": [[5, 2]]}]},
                {"t": 9.0, "in": 384, "out": 9, "think": 2.0, "keep": 5, "add": [[7, 1]]},
            ],
        }

    path = write(
        tmp_path / "agentic_x.jsonl",
        session("a", 128, 64),
        session("b", 128, 64),
        session("c", 128, 128),
        session("d", 192, 64),
    )
    by_name = {s.name: [list(t.blocks()) for t in s.turns] for s in load(path).sessions}
    a, b, c, d = (by_name[name] for name in "abcd")
    assert a[0][:3] == b[0][:3]
    assert not set(a[0][3:]) & set(b[0])
    assert a[0][:2] == c[0][:2]
    assert not set(a[0][2:]) & set(c[0])
    assert not set(a[0]) & set(d[0])
    assert len(a) == 3
    assert not set(a[1]) & set(a[0])
    assert a[2][:5] == a[0]
    assert [t.at_s for t in load(path).sessions[0].turns] == [0.0, 4.0, 9.0]


def test_a_coding_session_stops_at_its_first_prompt_beyond_the_context(tmp_path: Path) -> None:
    requests = [
        {"t": 0.0, "in": size, "out": 1, "keep": 0, "add": [[0, size // 64]]}
        for size in (640, 131_136, 640)
    ]
    row = {"session": "a", "block_size": 64, "tool_tokens": 64, "system_tokens": 64}
    path = write(tmp_path / "agentic_x.jsonl", {**row, "requests": requests})
    assert [turn.prompt for turn in load(path).sessions[0].turns] == [640]


def test_azure_rows_share_nothing(tmp_path: Path) -> None:
    path = write(
        tmp_path / "azure_llm_x.csv",
        "TIMESTAMP,ContextTokens,GeneratedTokens",
        "2023-11-16 18:17:03.9799600,130,10",
        "2023-11-16 18:17:04.4799600,64,8",
    )
    workload = load(path)
    assert [session.start_s for session in workload.sessions] == [0.0, 0.5]
    assert blocks(path) == [[[0, 1, 2]], [[3]]]


def test_servegen_draws_from_the_busiest_window(tmp_path: Path) -> None:
    head = "client,window_start_s,rate_rps,cv_interarrival,dist,shape,scale,in_mean,in_p50,in_p99"
    path = write(
        tmp_path / "servegen_x.csv",
        head + ",out_mean,out_p50,out_p99",
        "0,0,0.1,1.0,Gamma,1,1,100,50,900,10,5,50",
        "0,600,2.0,1.0,Gamma,1,1,100,50,900,10,5,50",
        "1,600,2.0,3.0,Gamma,1,1,,,,,,",
    )
    workload = load(path)
    assert 1000 < workload.requests < 1400
    prompts = [session.turns[0].prompt for session in workload.sessions]
    assert 80 < sum(prompts) / len(prompts) < 120
    assert load(path) == workload


CHATS = [
    {"chat_id": 7, "parent_chat_id": -1, "timestamp": 5.0, "input_length": 40,
     "output_length": 100, "type": "text", "turn": 1, "hash_ids": [1, 2, 3]},
    {"chat_id": 9, "parent_chat_id": 8, "timestamp": 6.0, "input_length": 33,
     "output_length": 0, "type": "search", "turn": 4, "hash_ids": [1, 2]},
    {"chat_id": 8, "parent_chat_id": 7, "timestamp": 12.0, "input_length": 80,
     "output_length": 10, "type": "text", "turn": 2, "hash_ids": [1, 2, 9, 10, 11]},
]  # fmt: skip


def test_requests_of_bailian_chats_follow_each_other(tmp_path: Path) -> None:
    """A chat whose beginning is not there begins with what is; a tail without an id is its own."""
    rows = [json.dumps(row) for row in CHATS]
    for name in ("qwen_traceA_blksz_16.jsonl", "renamed.jsonl"):
        path = write(tmp_path / name, *rows)
        whole, late = load(path).sessions
        assert (whole.name, whole.start_s, late.name, late.start_s) == ("7", 5.0, "9", 6.0)
        assert [turn.prompt for turn in whole.turns] == [40, 80]
        assert [turn.at_s for turn in whole.turns] == [0.0, 7.0]
        assert whole.turns[1].think_s == pytest.approx(7.0 - 100 * 0.03)
        assert late.turns[0].output == 1
        (first, second), ((third, last, tail),) = blocks(path)[0], blocks(path)[1]
        assert (first, second) == ([1, 2, 3], [1, 2, 9, 10, 11])
        assert (third, last) == (1, 2) and tail > 1 << 60


def test_the_made_up_sample_of_bailian_is_one() -> None:
    workload = load(Path(__file__).parents[2] / "examples" / "qwen_made_up_blksz_16.jsonl")
    assert (len(workload.sessions), workload.requests) == (24, 45)
    assert 0.4 < describe(workload).shared < 0.9


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("unknown.jsonl", "{}", "unknown trace"),
        ("mooncake_x.jsonl", "{not json", "mooncake_x.jsonl:1"),
        ("mooncake_x.jsonl", "[1]", "not an object"),
        ("mooncake_x.jsonl", "{}", "not the expected format"),
        ("taubench_x.jsonl", '{"session":"a","requests":[{"in":1,"out":1,"keep":3,"add":[]}]}',
         "keep 3"),
        ("qwen_x.jsonl", '{"chat_id":1,"parent_chat_id":-1,"timestamp":0,"input_length":64,'
         '"output_length":1,"hash_ids":[1,2]}', "chat_id 1: 2 blocks"),
        ("qwen_x.jsonl", '{"chat_id":1,"parent_chat_id":-1}', "not the expected format"),
        ("azure_llm_x.csv", "TIMESTAMP,ContextTokens,GeneratedTokens", "empty"),
        ("servegen_x.csv", "client,rate_rps", "empty"),
    ],
)  # fmt: skip
def test_errors_name_the_file_and_the_reason(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    with pytest.raises(TraceError, match=message):
        load(write(tmp_path / name, content))


def test_a_missing_or_broken_file_is_a_trace_error(tmp_path: Path) -> None:
    with pytest.raises(TraceError):
        load(tmp_path / "mooncake_none.jsonl")
    (tmp_path / "mooncake_x.jsonl.gz").write_bytes(b"not gzip")
    with pytest.raises(TraceError):
        load(tmp_path / "mooncake_x.jsonl.gz")


def test_runs_hold_consecutive_ids() -> None:
    assert compress([4, 5, 6, 9, 1, 2]) == ((4, 3), (9, 1), (1, 2))


def test_traces_are_found_by_variable_and_beside_the_project(tmp_path: Path) -> None:
    (tmp_path / "shared" / "traces").mkdir(parents=True)
    (tmp_path / "project").mkdir()
    assert find_traces({}, tmp_path / "project" / "x.py") == tmp_path / "shared" / "traces"
    assert find_traces({"WARMLANE_TRACES": str(tmp_path)}, Path("/")) == tmp_path
    assert find_traces({"WARMLANE_TRACES": str(tmp_path / "no")}, tmp_path) is None


# sessions, requests, prompt mean, p50, output mean, shared hit, hit of 4 caches round robin; as
# published with the traces (README of the set; computed there by another program).
PUBLISHED: dict[str, tuple[int, int, float, float, float, float, float]] = {
    "mooncake_conversation": (7851, 7851, 12_428, 7284, 347, 0.358, 0.184),
    "mooncake_synthetic": (3993, 3993, 15_325, 11_587, 149, 0.651, 0.372),
    "agentic_claude_code": (381, 17_265, 78_327, 79_780, 417, 0.962, 0.874),
    "agent_miniswe": (20, 402, 6017, 3807, 113, 0.936, 0.766),
    "taubench": (200, 2454, 3073, 2681, 81, 0.937, 0.808),
    "azure_llm_2023_conv": (19_366, 19_366, 1155, 1020, 211, 0.0, 0.0),
    "azure_llm_2023_code": (8819, 8819, 2048, 1469, 28, 0.0, 0.0),
}


@pytest.mark.traces
@pytest.mark.skipif(TRACES is None, reason="no traces: set WARMLANE_TRACES")
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_real_files_have_their_published_statistics(name: str) -> None:
    assert TRACES is not None
    path = next(iter(sorted(TRACES.glob(f"{name}*"))), None)
    if path is None:
        pytest.skip(f"no {name} in {TRACES}")
    sessions, requests, prompt, p50, output, shared, in_turn = PUBLISHED[name]
    found = describe(load(path), caches=(4,))
    assert (found.sessions, found.requests) == (sessions, requests)
    assert found.prompt.mean == pytest.approx(prompt, rel=0.001)
    assert found.prompt.p50 == pytest.approx(p50, rel=0.01)
    assert found.output.mean == pytest.approx(output, rel=0.01)
    assert found.shared == pytest.approx(shared, abs=0.004)
    assert found.round_robin[4] == pytest.approx(in_turn, abs=0.012)
