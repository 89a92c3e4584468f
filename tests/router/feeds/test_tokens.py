"""Replicas are proven over real HTTP when they serve, lose the proof when they do not."""

from __future__ import annotations

import asyncio
import json
from array import array
from pathlib import Path
from typing import Any

import pytest

from tests.common import until
from tests.router.feeds.engine import Engine
from tests.router.feeds.test_feeds import config_of, feeds_of, name, ready
from tests.router.tokens import folder
from warmlane.router.errors import ConfigError
from warmlane.router.requests import parse
from warmlane.router.token_jobs import FEATURES, bits_of, job_of
from warmlane.router.tokenizer_local import LocalTokenizer, load
from warmlane.router.types import Kind

ALL = bits_of(FEATURES)
BODY = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}).encode()


def answering(tokenizer: LocalTokenizer) -> Any:
    def ids(body: dict[str, Any]) -> list[int]:
        assert body.pop("model") == "tiny"
        job = job_of(Kind.CHAT if "messages" in body else Kind.COMPLETIONS, body)
        return array("I", tokenizer.ids(job, "string")[0]).tolist()

    return ids


@pytest.mark.parametrize("source", ["engine", "local"])
async def test_proven_lost_and_proven_again(source: str, tmp_path: Path) -> None:
    path = folder.save(tmp_path / "model", folder.byte_level())
    local = load(str(path), 0, "")
    async with Engine() as one, Engine() as two:
        one.tokenize = two.tokenize = answering(local)
        tokenizer = "engine" if source == "engine" else str(path)
        feeds, pool = feeds_of(config_of(one, two, tokenizer=tokenizer))
        await feeds.start()
        try:
            await until(lambda: [each.token_features for each in pool] == [ALL, ALL])
            assert feeds.tokens is not None
            request, _ = parse("POST", "/v1/chat/completions", {}, BODY)
            found = await feeds.tokens.ids(request, pool.name, BODY)
            late = 0
            while found.tokens is None:  # not in time on a busy machine: it is remembered then
                late += 1
                await asyncio.sleep(0.05)
                found = await feeds.tokens.ids(request, pool.name, BODY)
            job = job_of(Kind.CHAT, json.loads(BODY))
            assert found.tokens == local.ids(job, "string")[0]
            assert found.prompt == request.prompt
            assert found.token_features & ALL == found.token_features != 0
            counted = feeds.metrics.counts["warmlane_token_requests_total"]
            assert counted == {(pool.name, "exact"): 1} | (
                {(pool.name, "late"): late} if late else {}
            )
            await two.stop()
            await until(lambda: ready(pool) == {name(one)})
            replica = pool.by_name(name(two))
            assert replica is not None
            await until(lambda: replica.token_features == 0)
            await two.start()
            await until(lambda: replica.token_features == ALL)
        finally:
            await feeds.close()


async def test_late_ids_leave_the_request_to_the_approximate_view(tmp_path: Path) -> None:
    """It goes on as it was, at its budget's end and counted; the same prompt is known next time."""
    local = load(str(folder.save(tmp_path / "model", folder.byte_level())), 0, "")
    async with Engine() as one:
        one.tokenize = answering(local)
        feeds, pool = feeds_of(config_of(one, tokenizer="engine"))
        await feeds.start()
        try:
            await until(lambda: [each.token_features for each in pool] == [ALL])
            one.tokenize_gate.clear()
            request, _ = parse("POST", "/v1/chat/completions", {}, BODY)
            assert feeds.tokens is not None
            found = await feeds.tokens.ids(request, pool.name, BODY)
            # Without token ids no exact view decides: tests/router/test_exact.py has the decision.
            assert found is request and found.tokens is None
            counted = feeds.metrics.counts["warmlane_token_requests_total"]
            assert counted == {(pool.name, "late"): 1}
            one.tokenize_gate.set()  # what was begun is finished, and remembered
            model = feeds.tokens.models[pool.name]
            await until(lambda: model._in_hand == 0)
            asked = one.seen["/tokenize"]
            while found.tokens is None:  # on a busy machine even a look-up may be late
                found = await feeds.tokens.ids(request, pool.name, BODY)
            assert counted[pool.name, "exact"] == 1 and one.seen["/tokenize"] == asked
        finally:
            await feeds.close()


async def test_an_engine_without_the_path_or_with_garbage_proves_nothing() -> None:
    async with Engine() as one, Engine() as two:
        two.tokenize = lambda _: ["no", "ids"]
        feeds, pool = feeds_of(config_of(one, two, tokenizer="engine"))
        await feeds.start()
        try:
            await until(lambda: one.seen.get("/tokenize", 0) > 30)
            await until(lambda: two.seen.get("/tokenize", 0) > 30)
            await asyncio.sleep(0.05)
            assert [each.token_features for each in pool] == [0, 0]
            request, _ = parse("POST", "/v1/chat/completions", {}, BODY)
            assert feeds.tokens is not None
            assert await feeds.tokens.ids(request, pool.name, BODY) is request
        finally:
            await feeds.close()


async def test_a_tokenizer_that_is_not_there() -> None:
    async with Engine() as one:
        feeds, _ = feeds_of(config_of(one, tokenizer="/nowhere/model"))
        with pytest.raises(ConfigError, match=r"pools\[0\].tokenizer: /nowhere/model"):
            await feeds.start()
        await feeds.close()
