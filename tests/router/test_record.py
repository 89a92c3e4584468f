"""The record of requests: what is in it, what never is, and that it stops nobody."""

from __future__ import annotations

import gzip
import logging
import stat
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from warmlane._core.hashing import root_key, text_keys
from warmlane.router.config import Config, PoolConfig
from warmlane.router.config_load import from_data
from warmlane.router.config_record import Record
from warmlane.router.core import Router
from warmlane.router.errors import ConfigError
from warmlane.router.record import Salt
from warmlane.router.record_file import RecordFile
from warmlane.router.types import Kind, Outcome, ReplicaSpec, Request

PROMPT = b"the secret of the house is under the third stone " * 100
ANSWER = b"nobody may know it"


def router() -> Router:
    specs = [ReplicaSpec(url=f"http://10.0.0.{n}:8000") for n in range(2)]
    return Router(Config(pools=[PoolConfig(models=["m"], replicas=specs)]))


def ask(each: Router, prompt: bytes = PROMPT, session: str = "", status: str = "ok") -> None:
    request = Request(kind=Kind.COMPLETIONS, model="m", prompt=prompt, session=session)
    now = time.monotonic()
    decision = each.decide(request, now, 1)
    each.sent(decision.ticket, decision.choices[0], now)
    each.first_token(decision.ticket, now + 0.25)
    outcome = Outcome(
        status=status, prompt_tokens=1300, cached_tokens=700, output_tokens=20, text=ANSWER
    )
    each.close(decision.ticket, outcome, now + 1.5)


def written(path: Path) -> list[dict[str, Any]]:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [msgspec.json.decode(line) for line in data.splitlines()]


def recorded(path: Path, each: Router, **more: Any) -> RecordFile:
    made = RecordFile(each, Record(file=str(path), **more), None)
    made.open()
    return made


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz"])
def test_what_is_kept_of_a_request(tmp_path: Path, name: str) -> None:
    path, each = tmp_path / name, router()
    made = recorded(path, each)
    ask(each, session="alice")
    ask(each, PROMPT + b"and more of it " * 40, session="alice")
    ask(each, b"x" * 2000, status="error")
    made.close()
    head, first, second, third = written(path)
    assert head["warmlane_record"] == 1 and head["policy"] == {"default": "default"}
    assert head["replicas"] == {"default": 2}
    assert (first["ttft"], first["e2e"]) == (0.25, 1.5)
    assert (first["prompt"], first["cached"], first["output"]) == (1300, 700, 20)
    assert first["told"] and first["size"] == len(PROMPT) and first["slot"] in (0, 1)
    words = [first["words"][at : at + 16] for at in range(0, len(first["words"]), 16)]
    assert len(words) == len(PROMPT) // 512 == len(set(words))
    assert second["words"].startswith(first["words"]) and second["hit"] > 1000
    assert first["session"] == second["session"] != "alice"
    assert third["status"] == "error" and third["words"][:16] != words[0]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert each.metrics.counts["warmlane_record_requests_total"] == {("kept",): 3}


def test_no_prompt_can_be_found_in_it(tmp_path: Path) -> None:
    """Neither text nor the keys that a guess of the text gives, in any spelling; a second process
    writes other words for the same prompt."""
    found = []
    for number in range(2):
        path, each = tmp_path / f"{number}.jsonl", router()
        made = recorded(path, each)
        ask(each, session="alice")
        made.close()
        data = path.read_bytes()
        for secret in (b"secret", b"stone", ANSWER, b"alice"):
            assert secret not in data
        for key in text_keys(root_key("m"), PROMPT):
            little, big = key.to_bytes(8, "little"), key.to_bytes(8, "big")
            for spelled in (str(key).encode(), little.hex().encode(), big.hex().encode(), little):
                assert spelled not in data
        found.append(written(path)[1])
    assert found[0]["words"] != found[1]["words"]
    ours, theirs = (
        {each["words"][at : at + 16] for at in range(0, len(each["words"]), 16)} for each in found
    )
    assert len(ours) == len(PROMPT) // 512 and not ours & theirs
    assert found[0]["session"] != found[1]["session"]
    with pytest.raises(ValueError, match="guessed"):
        Salt(b"short")


def test_files_are_rotated_and_bounded(tmp_path: Path) -> None:
    path, each = tmp_path / "r.jsonl", router()
    made = recorded(path, each, max_bytes=65_536, files=3, queue=100_000)
    for number in range(1500):
        ask(each, b"%d " % number + PROMPT)
    made.close()
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["r.jsonl", "r.jsonl.1", "r.jsonl.2"]
    for name in names:
        assert (tmp_path / name).stat().st_size <= 65_536
        lines = written(tmp_path / name)
        assert lines[0]["warmlane_record"] == 1 and len(lines) > 1
    last = written(path)[-1]["at"]
    assert written(tmp_path / "r.jsonl.1")[-1]["at"] <= last
    again = recorded(path, each, files=1)
    again.close()
    assert [line for line in written(path) if "at" in line] == []


def test_compressed_files_are_rotated_by_what_is_on_disk(tmp_path: Path) -> None:
    path, each = tmp_path / "r.jsonl.gz", router()
    made = recorded(path, each, max_bytes=65_536, files=2, queue=100_000)
    for number in range(1500):
        ask(each, b"%d " % number + PROMPT)
    made.close()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["r.jsonl.1.gz", "r.jsonl.gz"]
    assert written(tmp_path / "r.jsonl.1.gz")[0]["warmlane_record"] == 1


def test_a_full_queue_loses_records_and_no_request(tmp_path: Path) -> None:
    each = router()
    made = RecordFile(each, Record(file=str(tmp_path / "r.jsonl"), queue=3), None)
    made._begin()
    made._recorder.follow()  # nobody takes out of the queue
    for _ in range(5):
        ask(each)
    assert each.metrics.counts["warmlane_record_requests_total"] == {("kept",): 3, ("lost",): 2}
    made._end()


def test_a_disk_that_fails_ends_the_record_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    each = router()
    made = recorded(tmp_path / "r.jsonl", each)
    assert made._raw is not None
    made._raw.close()  # as after an I/O error: nothing can be written any more
    full = Path("/dev/full").open("wb", buffering=0)  # noqa: SIM115 - the record closes it
    made._file = made._raw = full  # type: ignore[assignment]
    caplog.set_level(logging.ERROR)
    ask(each)
    made._thread.join(10)
    assert "state=failed" in caplog.text
    ask(each)
    assert each.metrics.counts["warmlane_record_requests_total"][("lost",)] == 1
    made.close()


def test_a_recorded_pool_leaves_the_compiled_path(tmp_path: Path) -> None:
    each = router()
    ask(each)
    lane = each.lanes["default"]
    found = each.fixed_target(b"m")
    assert found is not None and each.fixed_target(b"\xff") is None
    target = found[1]
    before = lane.lead("m", target, lane.pool, lambda slot: slot)
    assert before is not None
    made = recorded(tmp_path / "r.jsonl", each)
    assert lane.lead("m", target, lane.pool, lambda slot: slot) is None
    made.close()


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    for bad in (tmp_path, tmp_path / "nowhere" / "r.jsonl"):
        with pytest.raises(ConfigError, match=r"record\.file"):
            RecordFile(router(), Record(file=str(bad)), None).open()
    with pytest.raises(ConfigError, match="max_bytes"):
        from_data({"record": {"file": "x", "max_bytes": 10}})
