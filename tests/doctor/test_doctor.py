"""`warmlane doctor` on fake engines that are well, and on each thing that can be wrong with one."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import sys
import time
from array import array
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from tests.doctor.liar import Liar, answered, edited, replaced
from tests.router.tokens import folder
from tests.sim.rig import fake
from warmlane.router import doctor_cache
from warmlane.router.cli import main
from warmlane.router.config_load import normal_spec
from warmlane.router.doctor import Patient, examine
from warmlane.router.doctor_visit import Line
from warmlane.router.feeds.client import engine_headers
from warmlane.router.sim.faults import Fault
from warmlane.router.token_jobs import job_of
from warmlane.router.tokenizer_local import load
from warmlane.router.types import Kind, ReplicaSpec
from warmlane.router.watchdog import ADVICE

EVENTS = "tcp://127.0.0.1:*"


def patient(url: str, **more: Any) -> Patient:
    more.setdefault("timeout_s", 3.0)
    more.setdefault("kv_events", "off")
    return Patient(spec=normal_spec(ReplicaSpec(url=url)), **more)


async def seen(*patients: Patient) -> dict[str, Line]:
    """The lines of one examination, by check."""
    return {line.check: line for line in await examine(patients)}


def verdicts(lines: dict[str, Line], *wanted: str) -> dict[str, str]:
    """Check -> found, of those with one of these verdicts."""
    return {name: line.found for name, line in lines.items() if line.verdict in wanted}


@pytest.mark.parametrize("form", ["map", "array"])
async def test_a_well_engine_has_nothing_to_change(form: str) -> None:
    async with fake(
        kv_events=EVENTS, replay_endpoint=EVENTS, kv_events_form=form, loras=("ada",)
    ) as (engine, _):
        lines = await seen(patient(engine.url, kv_events="auto"))
    assert verdicts(lines, "warn", "fail") == {}
    assert {
        *("reachable", "clock", "version", "api-key", "models", "metrics", "cache-size"),
        *("prefix-caching", "answers", "cached-tokens", "kv-events", "block-size", "kv-match"),
        *("kv-replay", "tokenizer", "lora"),
    } == lines.keys()
    assert lines["kv-match"].found.startswith("64 tokens")


async def test_blocks_that_are_told_late_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was heard first may be a replay of older blocks."""
    asked: list[str] = []
    held = doctor_cache.Ears.held_tokens

    def late(ears: doctor_cache.Ears, ids: list[int], adapter: str) -> int:
        asked.append(adapter)
        return held(ears, ids, adapter) if len(asked) > 3 else 0

    monkeypatch.setattr(doctor_cache.Ears, "held_tokens", late)
    async with fake(kv_events=EVENTS, replay_endpoint=EVENTS) as (engine, _):
        lines = await seen(patient(engine.url, kv_events="auto"))
    assert lines["kv-match"].verdict == "ok" and len(asked) > 3


async def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    lines = await seen(patient(f"http://127.0.0.1:{port}"))
    assert verdicts(lines, "fail").keys() == {"reachable"} == lines.keys()


async def test_a_closed_port_of_a_running_engine() -> None:
    async with fake() as (engine, session):
        async with session.post("/fault", json={"kind": "refuse", "seconds": 30}):
            pass
        assert verdicts(await seen(patient(engine.url)), "fail").keys() == {"reachable"}


@pytest.mark.parametrize(
    ("kind", "why"),
    [("hang", "no answer"), ("abort", "abort"), ("error", "500"), ("unavailable", "503")],
)
async def test_an_engine_that_is_healthy_and_does_not_answer(kind: str, why: str) -> None:
    async with fake(faults=(Fault(kind=kind, count=-1),)) as (engine, _):
        lines = await seen(patient(engine.url, timeout_s=0.7))
    assert why in lines["answers"].found and lines["answers"].verdict == "fail"
    assert "cached-tokens" not in lines


async def test_a_missing_flag_is_named() -> None:
    async with fake(prompt_tokens_details=False) as (engine, _):
        lines = await seen(patient(engine.url, kv_events="auto"))
    assert verdicts(lines, "fail") == {}
    assert "--enable-prompt-tokens-details" in lines["cached-tokens"].advice
    assert "enable_kv_cache_events" in lines["kv-events"].advice


async def test_events_without_replay() -> None:
    async with fake(kv_events=EVENTS) as (engine, _):
        lines = await seen(patient(engine.url, kv_events="auto"))
    assert verdicts(lines, "warn", "fail").keys() == {"kv-replay"}


async def test_events_that_nobody_sends() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        silent = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        async with fake() as (engine, _):
            lines = await seen(patient(engine.url, kv_events=silent))
    assert lines["kv-events"].verdict == "warn" and "endpoint" in lines["kv-events"].advice


@pytest.mark.parametrize("key", ["", "wrong", "right"])
async def test_keys(key: str, tmp_path: Path) -> None:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with fake(api_key="right") as (engine, _):
        lines = await seen(patient(engine.url, headers=headers))
    if key == "right":
        assert lines["api-key"].verdict == "ok" and verdicts(lines, "fail") == {}
    else:
        assert verdicts(lines, "fail").keys() == {"api-key"}
        assert "engine_api_key_file" in lines["api-key"].advice


async def test_a_key_that_nobody_asks_for(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("abc\n")
    headers = engine_headers(str(tmp_path / "key"), "", "key")
    async with fake() as (engine, _):
        lines = await seen(patient(engine.url, headers=headers))
    assert "not asked for" in lines["api-key"].found


async def test_a_model_that_is_not_served() -> None:
    async with fake(loras=("ada",)) as (engine, _):
        assert verdicts(await seen(patient(engine.url, model="ada")), "fail") == {}
        lines = await seen(patient(engine.url, model="other"))
    assert verdicts(lines, "fail").keys() == {"models"} and "ada" in lines["models"].advice


LIES = [
    ("/metrics", replaced(b'prefix_caching="True"', b'prefix_caching="False"'), "prefix-caching"),
    ("/metrics", replaced(b"num_gpu_blocks", b"other_blocks"), "cache-size"),
    ("/metrics", replaced(b"vllm:", b"other:"), "metrics"),
    ("/metrics", replaced(b"vllm:prefix_cache_q", b"vllm:other_q"), "counters"),
    ("/metrics", answered(404), "metrics"),
    ("/version", answered(200, {"version": "9.9.9"}), "version"),
    ("/version", answered(404), "version"),
    ("/v1/models", answered(200, {"data": []}), "models"),
    ("/v1/models", answered(200, {"models": 1}), "models"),
    ("/health", answered(503), "reachable"),
    ("/tokenize", answered(404), "tokenizer"),
    ("/kv_event_sources", answered(404), "kv-events"),
    ("/v1/completions", edited(lambda body: _tell(body, 0)), "cached-tokens"),
    ("/v1/completions", edited(lambda body: _tell(body, 32)), "cached-tokens"),
    ("/v1/completions", edited(lambda body: body.pop("usage")), "answers"),
]


def _tell(body: dict[str, Any], cached: int) -> None:
    body["usage"]["prompt_tokens_details"] = {"cached_tokens": cached}


@pytest.mark.parametrize(("path", "edit", "check"), LIES)
async def test_each_trouble_is_found(path: str, edit: Any, check: str) -> None:
    events = {"kv_events": EVENTS, "replay_endpoint": EVENTS}
    async with fake(**events) as (engine, _), Liar(engine.url) as liar:
        liar.edits[path] = edit
        lines = await seen(patient(liar.url, kv_events="auto"))
    assert lines[check].verdict in ("warn", "fail")
    assert lines[check].advice or check in ("models", "counters")


@pytest.mark.parametrize("sources", [{}, {"0": {"enable_kv_cache_events": False}}])
async def test_events_that_are_off_are_told_apart_from_lost_ones(sources: dict[str, Any]) -> None:
    async with fake() as (engine, _), Liar(engine.url) as liar:
        liar.edits["/kv_event_sources"] = answered(200, sources)
        line = (await seen(patient(liar.url, kv_events="auto")))["kv-events"]
    assert line.verdict == "warn" and "enable_kv_cache_events" in line.advice


async def test_an_index_that_would_promise_too_much_is_a_failure() -> None:
    """The engine says 0 for what its events say is there: the silent mismatch, in one line."""
    events = {"kv_events": EVENTS, "replay_endpoint": EVENTS}
    async with fake(**events) as (engine, _), Liar(engine.url) as liar:
        liar.edits["/v1/completions"] = edited(lambda body: _tell(body, 0))
        lines = await seen(patient(liar.url, kv_events="auto"))
    assert verdicts(lines, "fail").keys() == {"cached-tokens", "kv-match"}


async def test_a_clock_that_is_off() -> None:
    async with fake() as (engine, _), Liar(engine.url) as liar:
        liar.date = formatdate(time.time() - 90, usegmt=True)
        line = (await seen(patient(liar.url)))["clock"]
        assert line.verdict == "warn" and any(f"{n} s off" in line.found for n in (88, 89, 90))
        liar.date = formatdate(time.time() + 90, usegmt=True)
        assert (await seen(patient(liar.url)))["clock"].verdict == "warn"


async def test_an_engine_that_sleeps() -> None:
    async with fake() as (engine, session):
        async with session.post("/sleep?level=1"):
            pass
        lines = await seen(patient(engine.url, timeout_s=0.7, generate=False))
    assert lines["awake"].verdict == "fail" and lines["cached-tokens"].verdict == "skip"


async def test_token_ids_equal_and_not(tmp_path: Path) -> None:
    path = folder.save(tmp_path / "model", folder.byte_level())
    other = folder.save(tmp_path / "other", folder.byte_level(), template="{{ messages[0].role }}")
    ours = load(str(path), 0, "")

    def encode(body: dict[str, Any]) -> dict[str, Any]:
        job = job_of(Kind.CHAT if "messages" in body else Kind.COMPLETIONS, body)
        return {"tokens": array("I", ours.ids(job, "string")[0]).tolist()}

    async with fake() as (engine, _), TokenFront(engine.url, encode) as front:
        equal = await seen(patient(front.url, tokenizer=str(path)))
        chats = await seen(patient(front.url, tokenizer=str(other)))
        none = await seen(patient(engine.url, tokenizer=str(path)))
    assert equal["tokenizer"].verdict == "ok"
    assert chats["tokenizer"].verdict == "fail" and "--chat-template" in chats["tokenizer"].advice
    assert none["tokenizer"].verdict == "fail" and "no probe" in none["tokenizer"].found


class TokenFront(Liar):
    """A front that answers /tokenize with a function of its own."""

    def __init__(self, url: str, encode: Any) -> None:
        super().__init__(url)
        self.encode = encode

    async def _pass(self, request: Any) -> Any:
        if request.path == "/tokenize":
            body = await request.json()
            body.pop("model")
            self.edits["/tokenize"] = lambda *_: (200, json.dumps(self.encode(body)).encode())
        return await super()._pass(request)


async def test_replicas_that_differ() -> None:
    ada = ("ada",)
    async with (
        fake(loras=ada) as (one, _),
        fake(loras=ada, block_size=32) as (two, _),
        Liar(one.url) as liar,
    ):
        liar.edits["/v1/models"] = edited(_other_path)
        liar.edits["/version"] = answered(200, {"version": "0.30.0"})
        lines = await seen(patient(liar.url), patient(two.url))
    assert lines["adapter ada"].verdict == "fail"
    assert lines["versions"].verdict == lines["block-sizes"].verdict == "warn"


def _other_path(body: dict[str, Any]) -> None:
    for card in body["data"]:
        if card["parent"]:
            card["root"] = "/elsewhere/ada"


async def test_ranks_are_taken_apart_and_the_first_is_examined() -> None:
    def second(sources: dict[str, Any]) -> None:
        sources["1"] = {**sources["0"], "endpoint": "tcp://*:1"}

    async with fake(kv_events=EVENTS) as (engine, _), Liar(engine.url) as liar:
        liar.edits["/kv_event_sources"] = edited(second)
        lines = await seen(patient(liar.url, kv_events="auto"))
    assert lines["ranks"].found.startswith("2 data-parallel ranks")
    assert [lines[name].verdict for name in ("kv-events", "kv-match", "metrics")] == ["ok"] * 3


def test_the_page_names_every_check_and_cause() -> None:
    root = Path(__file__).resolve().parents[2]
    page = (root / "docs" / "doctor.md").read_text()
    said = [
        check
        for name in ("doctor_visit", "doctor_cache", "doctor_tokens")
        for check in re.findall(r'\.say\(\s*"([a-z-]+)"', (root / f"router/{name}.py").read_text())
    ]
    assert len(set(said)) > 15
    assert [name for name in {*said, *ADVICE} if f"`{name}`" not in page] == []


# The command


async def run_command(*words: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "warmlane", "doctor", *words),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_the_command(tmp_path: Path) -> None:
    async with fake(kv_events=EVENTS, replay_endpoint=EVENTS) as (engine, _):
        config = tmp_path / "warmlane.yaml"
        config.write_text(f"pools: [{{replicas: ['{engine.url}'], kv_events: auto}}]\n")
        status, out, err = await run_command("--config", str(config))
        assert (status, err) == (0, "")
        assert "kv-match" in out and "0 fail" in out
        status, out, _ = await run_command("--replica", engine.url, "--json", "--model", "no")
    told = json.loads(out)
    assert status == 1 and told["failed"] == 1
    assert told["lines"][-1]["check"] == "models" and told["lines"][-1]["advice"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "--replica URL"),
        (["--replica", "http://a:1", "--config", "x"], "--replica URL"),
        (["--config", "/no/such/file"], "cannot be read"),
        (["--replica", "ftp://a"], "ftp"),
        (["--replica", "http://a:1", "--kv-events", "udp://x"], "--kv-events"),
        (["--replica", "http://a:1", "--timeout", "0"], "--timeout"),
        (["--replica", "http://a:1", "--engine-api-key-file", "/no/such"], "/no/such"),
        (["--replica", "http://a:1", "--tokenizer", "/no/such"], "tokenizer"),
    ],
)
def test_what_cannot_run_is_status_2(
    words: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", *words]) == 2
    err = capsys.readouterr().err
    assert reason in err and len(err.splitlines()) == 1
