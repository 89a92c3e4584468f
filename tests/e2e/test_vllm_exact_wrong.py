"""Deliberately wrong set-ups of real engines: `doctor`, the proofs and the watchdog name them."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from .vllm.commands import complete, doctor, prompts, with_other_merges, with_other_template
from .vllm.engines import DETAILS, fetch
from .vllm.fleet import Fleet, until
from .vllm.router import Router

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

DOUBT_S = 60.0  # two looks ten seconds apart, and traffic enough in each


def test_the_doctor_finds_nothing_wrong(fleet: Fleet) -> None:
    words = [word for engine in fleet.engines for word in ("--replica", engine.url)]
    status, lines = doctor(*words, "--tokenizer", str(fleet.tokenizer))
    wrong = {key: line for key, line in lines.items() if line["verdict"] in ("fail", "warn")}
    assert (status, wrong) == (0, {})
    for number in range(2):
        name = fleet.replica(number)
        for check in ("kv-events", "kv-match", "kv-replay", "block-size", "tokenizer", "lora"):
            assert lines[name, check]["verdict"] == "ok", check
        assert lines[name, "kv-match"]["found"].startswith("128 tokens")


def test_a_wrong_tokenizer_is_named_and_never_used(fleet: Fleet, tmp_path: Path) -> None:
    ids = with_other_merges(fleet.tokenizer, tmp_path / "ids")
    chats = with_other_template(fleet.tokenizer, tmp_path / "chats")
    engine, name = fleet.engines[0], fleet.replica(0)
    status, lines = doctor("--replica", engine.url, "--tokenizer", str(ids), "--no-requests")
    assert (status, lines[name, "tokenizer"]["verdict"]) == (1, "fail")
    assert str(ids) in lines[name, "tokenizer"]["advice"]
    status, lines = doctor("--replica", engine.url, "--tokenizer", str(chats), "--no-requests")
    assert (status, lines[name, "tokenizer"]["verdict"]) == (1, "fail")
    assert "--chat-template" in lines[name, "tokenizer"]["advice"]
    for folder, state, result in ((ids, "different", "unproven"), (chats, "partly", "")):
        with fleet.serving(str(folder)) as router:
            until(lambda state=state: said(router, state) == 2, f"both are found {state}")
            talk = {"model": "tiny", "messages": [{"role": "user", "content": "warm lane " * 90}]}
            for _ in range(2):
                fetch(
                    f"{router.url}/v1/chat/completions",
                    data=json.dumps({**talk, "max_tokens": 1}).encode(),
                    kind="application/json",
                    timeout=60,
                )
            counted = "warmlane_token_requests_total"
            assert router.total(counted, result=result or "unproven_feature") == 2
            assert router.total(counted, result="exact") == 0


def said(router: Router, state: str) -> int:
    """Replicas whose tokenizer was found to be so."""
    lines = router.log.read_text().splitlines()
    return len(
        {
            line.partition("replica=")[2].split()[0]
            for line in lines
            if "event=tokenizer" in line and f"state={state}" in line
        }
    )


def doubts(router: Router) -> dict[str, str]:
    """Cause by replica."""
    found = json.loads(fetch(f"{router.admin}/admin/v1/replicas"))["replicas"]
    return {row["name"]: row["doubt"]["cause"] for row in found if row.get("doubt")}


def doubted(router: Router, cause: str, names: set[str], *, repeats: int, seed: int) -> float:
    """Send every prompt so often, new ones all the time; seconds until the cause is named."""
    began = time.monotonic()
    while time.monotonic() - began < DOUBT_S:
        texts = prompts(8, 90, seed)
        seed += 1
        for _ in range(repeats):
            complete(router.url, texts, 4)
            time.sleep(0.6)  # until what was sent is told, and no longer only expected
        found = doubts(router)
        if names <= {name for name, why in found.items() if why == cause}:
            return time.monotonic() - began
    pytest.fail(f"not doubted for {cause}: {doubts(router)}\n{router.log.read_text()[-2000:]}")


def test_events_of_the_other_engine_are_doubted(fleet: Fleet) -> None:
    """Each replica's `kv_events` names the other one's ports: nothing promised is there."""
    crossed = [
        {"url": engine.url, "kv_events": "tcp://127.0.0.1:{},tcp://127.0.0.1:{}".format(*ports)}
        for engine, ports in zip(fleet.engines, reversed(fleet.ports), strict=True)
    ]
    names = {fleet.replica(number) for number in range(2)}
    with fleet.serving(replicas=crossed) as router:
        until(lambda: router.total("warmlane_replica_exact") == 2, "both are trusted")
        took = doubted(router, "events", names, repeats=2, seed=61)
        log = router.log.read_text()
    print(f"\ncrossed event endpoints: doubted after {took:.0f} s")
    assert "event=prediction_doubt" in log and "check its event and replay endpoints" in log


def test_missing_flags_are_named(fleet: Fleet) -> None:
    """An engine without events, without token details and without a prefix cache."""
    engine, name = fleet.engines[1], fleet.replica(1)
    engine.kill()
    engine.flags = ("--no-enable-prefix-caching",)
    try:
        fleet.start(1)
        status, lines = doctor("--replica", engine.url)
        assert status == 1
        assert DETAILS in lines[name, "cached-tokens"]["advice"]
        assert "enable_kv_cache_events" in lines[name, "kv-events"]["advice"]
        assert lines[name, "prefix-caching"]["verdict"] == "fail"
        assert "--no-enable-prefix-caching" in lines[name, "prefix-caching"]["advice"]
        with fleet.serving(replicas=[{"url": engine.url}], ready=1) as router:
            took = doubted(router, "caching_off", {name}, repeats=2, seed=71)
            assert "events are off in the engine (--kv-events-config)" in router.log.read_text()
        print(f"\nno cache, no details, no events: doubted after {took:.0f} s")
    finally:
        engine.kill()
        engine.flags = tuple(fleet.flags(1))
