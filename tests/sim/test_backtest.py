"""`warmlane replay RECORD --backtest`: predicts what the lab made, refuses what it cannot."""

from __future__ import annotations

import argparse
import gzip
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec
import pytest

from warmlane.router.config import PoolConfig
from warmlane.router.record import Entry, Head
from warmlane.router.sim.lab import Lab
from warmlane.router.sim.lab_run import LabOptions
from warmlane.router.sim.record_trace import answered, read, trace
from warmlane.router.sim.replay import add_arguments, run
from warmlane.router.sim.timing import PRESETS
from warmlane.router.sim.traces import TraceError, Workload, load
from warmlane.router.sim.workload import generate

TIMING = PRESETS["llama-3.1-8b/h100"]


def head(**more: Any) -> Head:
    given: dict[str, Any] = {"policy": {"default": "default"}, "replicas": {"default": 4}}
    given |= {"capacities": {"default": [TIMING.kv_tokens] * 4}, "began": 0.0}
    return Head(warmlane_record=1, version="0", **(given | more))


def words_of(blocks: list[int]) -> str:
    """A word for each 128 tokens, as a keyed hash of the chain would be."""
    found, chain = [], b""
    for block in blocks:
        chain = blake2b(chain + str(block).encode(), digest_size=8).digest()
        found.append(chain.hex())
    return "".join(found)


def record(path: Path, slower: float = 1.0, **more: Any) -> Workload:
    """What a router would have written of a run of the lab; slower: its times are that longer."""
    made = generate("chat", 60, seed=4)
    each = 128 // made.block_size
    done = Lab(made, PoolConfig(), LabOptions(fleet=(TIMING,) * 4, rate=4.0)).run().done
    blocks = {
        (turn.prompt, turn.output): list(turn.blocks())
        for session in made.sessions
        for turn in session.turns
    }
    lines = [
        Entry(
            at=one.at,
            pool="default",
            slot=one.slot,
            prompt=one.prompt,
            size=one.prompt,
            ttft=one.ttft * slower,
            e2e=one.e2e * slower,
            cached=one.cached,
            output=one.output,
            told=True,
            is_tokens=True,
            words=words_of(
                blocks[one.prompt, one.output][each - 1 : one.prompt // made.block_size : each]
            ),
        )
        for one in done
    ]
    data = b"".join(msgspec.json.encode(line) + b"\n" for line in (head(**more), *lines))
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return made


def replay(*words: str) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args([*words, "--quiet", "--profile", "llama-3.1-8b/h100"]))


def test_the_lab_predicts_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.jsonl.gz"
    record(path)
    assert replay(str(path), "--backtest") == 0
    said = capsys.readouterr().out
    assert "mean TTFT" in said and "too large" not in said
    shown = {line.split()[-2]: line for line in said.splitlines() if "%" in line}
    assert all(abs(float(error.rstrip("%"))) < 8 for error in shown), said
    assert replay(str(path), "--backtest", "--policy", "default,round-robin") == 0
    said = capsys.readouterr().out
    assert "round-robin" in said and said.startswith("backtest:")


def test_a_record_that_is_not_predicted_gets_no_what_if(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.jsonl"
    record(path, slower=2.0)
    assert replay(str(path), "--backtest") == 0
    assert capsys.readouterr().out.count("too large") == 2
    assert replay(str(path), "--backtest", "--policy", "default,round-robin") == 3
    said = capsys.readouterr()
    assert "too large" in said.out and "round-robin" not in said.out
    assert "does not predict" in said.err


def test_the_policy_that_ran_has_to_be_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.jsonl"
    record(path, policy={"default": ""})
    assert replay(str(path), "--backtest") == 2
    assert "--ran" in capsys.readouterr().err
    assert replay(str(path), "--backtest", "--ran", "default") == 0
    assert replay(str(path), "--backtest", "--ran", "no-such") == 2


def test_what_the_workload_of_a_record_is(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    made = record(path)
    found = load(path)
    assert found.requests == made.requests and found.block_size == 128
    opened = trace(read(path), "x", open_loop=True)
    assert len(opened.sessions) == opened.requests == made.requests
    runs = [turn.runs for session in opened.sessions for turn in session.turns]
    assert len({each[0][0] for each in runs}) < len(runs) / 2  # beginnings are shared
    assert load(path, kind="record") == found


def test_sessions_are_those_of_their_ids(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    given = [("a", 0.0), ("a", 5.0), ("b", 1.0), ("a", 5.5), ("", 2.0), ("a", 30.0)]
    lines = [
        Entry(
            at=at,
            pool="default",
            slot=0,
            prompt=100,
            size=400,
            ttft=0.1,
            e2e=2.0,
            output=5,
            session=session,
            told=True,
        )
        for session, at in given
    ]
    failed = msgspec.structs.replace(lines[0], status="error")
    other = msgspec.structs.replace(lines[0], pool="another")
    everything = (head(), *lines, failed, other)
    path.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in everything))
    recorded = read(path)
    assert len(answered(recorded)) == len(given)
    sessions = {each.name: [turn.think_s for turn in each.turns] for each in load(path).sessions}
    assert sessions["a"] == [0.0, 3.0, 23.0]  # 5.5 came while the one of 5.0 was under way
    assert len(sessions) == 4


def test_bad_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r.jsonl"
    good = msgspec.json.encode(head()) + b"\n"
    for data, says in (
        (good + b'{"at": "x"}\n', "line 2"),
        (good.replace(b'"warmlane_record":1', b'"warmlane_record":9'), "newer"),
        (b'{"at":1}\n', "unknown trace"),
        (good, "no requests"),
    ):
        path.write_bytes(data)
        assert replay(str(path)) == 2
        assert says in capsys.readouterr().err
    path.write_bytes(good)
    assert replay(str(path), "--backtest") == 2
    assert "30 are needed" in capsys.readouterr().err
    assert replay("chat", "--backtest", "--sessions", "2") == 2
    assert "not what --record wrote" in capsys.readouterr().err


def test_a_file_that_is_still_written_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    plain, zipped = tmp_path / "p.jsonl", tmp_path / "z.jsonl.gz"
    record(plain)
    whole = read(plain)
    data = plain.read_bytes()
    plain.write_bytes(data[:-40])
    assert read(plain).lines == whole.lines[: len(read(plain).lines)]
    assert len(read(plain).lines) >= len(whole.lines) - 1
    zipped.write_bytes(gzip.compress(data)[:-200])
    assert 0 < len(read(zipped).lines) < len(whole.lines)
    with pytest.raises(TraceError, match="not a record"):
        zipped.write_bytes(gzip.compress(b""))
        read(zipped)
