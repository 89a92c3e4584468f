"""The service: believed after a proof only, in time or not at all, every result counted."""

from __future__ import annotations

import asyncio
import json
from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.router.tokens import folder
from warmlane.router.errors import ConfigError
from warmlane.router.token_jobs import FEATURES, job_of
from warmlane.router.tokenize import EngineSilent, EngineTokens, LocalTokens, budget_s
from warmlane.router.tokenizer_local import LocalTokenizer, load
from warmlane.router.types import Kind

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hello there"}]}
BODY = json.dumps(CHAT).encode()


@pytest.fixture(scope="module")
def workers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> LocalTokenizer:
    path = folder.save(tmp_path_factory.mktemp("model"), folder.byte_level())
    return load(str(path), 1 << 20, "tokenizer")


class Engine:
    """Answers as an engine does whose tokenizer is the given one."""

    def __init__(self, tokenizer: LocalTokenizer) -> None:
        self.tokenizer = tokenizer
        self.asked: list[str] = []
        self.refuse = ""
        self.delay_s = 0.0

    async def __call__(self, replica: str, body: dict[str, Any]) -> list[int]:
        self.asked.append(replica)
        await asyncio.sleep(self.delay_s)
        kind = Kind.CHAT if "messages" in body else Kind.COMPLETIONS
        job = job_of(kind, body)
        if self.refuse and self.refuse in job.features:
            raise EngineSilent("400")
        return array("I", self.tokenizer.ids(job, "string")[0]).tolist()


async def test_not_believed_before_the_proof(
    local: LocalTokenizer, workers: ThreadPoolExecutor
) -> None:
    model = LocalTokens("m", local, workers)
    assert await model.ids(Kind.CHAT, BODY, 5) is None
    assert model.results == {"unproven": 1}
    proof = await model.prove("a:1", Engine(local))
    assert (proof.state, proof.features) == ("proven", FEATURES)
    found = await model.ids(Kind.CHAT, BODY, 5)
    assert found is not None and found.whole
    truth = folder.byte_level().encode(
        "<|im_start|>user\nHello there<|im_end|>\n<|im_start|>assistant\n"
    )
    assert array("I", found.tokens).tolist() == truth.ids
    assert model.proven("b:1") == frozenset()
    model.forget("a:1")
    assert await model.ids(Kind.CHAT, BODY, 5) is None


async def test_another_tokenizer_is_found_out(
    local: LocalTokenizer, workers: ThreadPoolExecutor, tmp_path: Path
) -> None:
    other = load(str(folder.save(tmp_path, folder.byte_level(280))), 0, "tokenizer")
    model = LocalTokens("m", local, workers)
    assert (await model.prove("a:1", Engine(other))).state == "different"
    assert await model.ids(Kind.CHAT, BODY, 5) is None


async def test_another_template_leaves_plain_prompts(
    local: LocalTokenizer, workers: ThreadPoolExecutor, tmp_path: Path
) -> None:
    template = folder.CHATML.replace("assistant\n", "assistant:")
    other = load(str(folder.save(tmp_path, folder.byte_level(), template)), 0, "tokenizer")
    model = LocalTokens("m", local, workers)
    proof = await model.prove("a:1", Engine(other))
    assert (proof.state, proof.features) == ("partly", {"prompt"})
    assert await model.ids(Kind.CHAT, BODY, 5) is None
    assert model.results["unproven_feature"] == 1
    assert await model.ids(Kind.COMPLETIONS, b'{"prompt": "Hello"}', 5) is not None


async def test_a_refused_feature_is_not_used(
    local: LocalTokenizer, workers: ThreadPoolExecutor
) -> None:
    model = LocalTokens("m", local, workers)
    engine = Engine(local)
    engine.refuse = "tools"
    proof = await model.prove("a:1", engine)
    assert proof.state == "partly" and "tools" not in proof.features
    tool = {"type": "function", "function": {"name": "f"}}
    body = json.dumps({**CHAT, "tools": [tool]}).encode()
    assert await model.ids(Kind.CHAT, body, 5) is None
    assert await model.ids(Kind.CHAT, BODY, 5) is not None


async def test_late_ids_are_dropped_and_counted(
    local: LocalTokenizer, workers: ThreadPoolExecutor
) -> None:
    engine = Engine(local)
    model = EngineTokens("m", engine, workers, 1 << 16)
    await model.prove("a:1", engine)
    engine.delay_s = 0.2
    assert await model.ids(Kind.CHAT, BODY, 0.01) is None
    assert model.results == {"late": 1}
    await asyncio.sleep(0.4)  # what was begun is finished: the next turn finds it
    assert await model.ids(Kind.CHAT, BODY, 0.1) is not None


async def test_engine_mode_asks_in_turn_and_remembers(
    local: LocalTokenizer, workers: ThreadPoolExecutor
) -> None:
    engine = Engine(local)
    model = EngineTokens("m", engine, workers, 2_000)
    for name in ("a:1", "b:1"):
        assert (await model.prove(name, engine)).state == "proven"
    engine.asked.clear()
    for number in range(20):
        body = json.dumps({"prompt": f"prompt number {number}"}).encode()
        assert await model.ids(Kind.COMPLETIONS, body, 5) is not None
        assert await model.ids(Kind.COMPLETIONS, body, 5) is not None
    assert len(engine.asked) == 20
    assert engine.asked.count("a:1") == 10


async def test_a_replica_with_another_tokenizer_than_its_peers(
    local: LocalTokenizer, workers: ThreadPoolExecutor, tmp_path: Path
) -> None:
    other = load(str(folder.save(tmp_path, folder.byte_level(280))), 0, "tokenizer")
    engine = Engine(local)
    model = EngineTokens("m", engine, workers, 1 << 16)
    await model.prove("a:1", engine)
    assert (await model.prove("b:1", Engine(other))).state == "different"


async def test_a_silent_engine_proves_nothing(
    local: LocalTokenizer, workers: ThreadPoolExecutor
) -> None:
    async def silent(replica: str, body: dict[str, Any]) -> list[int]:
        raise EngineSilent("connection refused")

    model = LocalTokens("m", local, workers)
    assert (await model.prove("a:1", silent)).state == "silent"


async def test_garbage_is_counted_not_raised(
    local: LocalTokenizer, workers: ThreadPoolExecutor
) -> None:
    model = LocalTokens("m", local, workers)
    await model.prove("a:1", Engine(local))
    for body in (b"", b"{", b"[]", b'{"messages": [[]]}', b"\xff\xfe", b"[" * 100_000):
        assert await model.ids(Kind.CHAT, body, 5) is None
    assert sum(model.results.values()) == 6
    assert model.results["bug"] == 0


async def test_too_many_at_once_are_given_up_at_once(
    local: LocalTokenizer, workers: ThreadPoolExecutor
) -> None:
    engine = Engine(local)
    model = EngineTokens("m", engine, workers, 0)
    await model.prove("a:1", engine)
    engine.delay_s = 0.3
    found = await asyncio.gather(*(model.ids(Kind.CHAT, BODY, 5) for _ in range(100)))
    assert sum(each is not None for each in found) == 64
    assert model.results["late"] == 36


def test_the_budget() -> None:
    assert budget_s(100, 80_000) == 0.005
    assert budget_s(16_000, 80_000) == pytest.approx(0.010)
    assert budget_s(10_000_000, 80_000) == 0.100


def test_a_model_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no readable tokenizer"):
        load(str(tmp_path), 0, "pools[0].tokenizer")
    path = folder.save(tmp_path / "m", folder.byte_level())
    (path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(str(path), 0, "pools[0].tokenizer")
    (path / "tokenizer_config.json").write_text('{"chat_template": "{% if %}"}')
    with pytest.raises(ConfigError, match="not valid"):
        load(str(path), 0, "pools[0].tokenizer")


async def test_prompts_with_a_token_around(workers: ThreadPoolExecutor, tmp_path: Path) -> None:
    tokenizer = folder.with_bos()
    model = LocalTokens("m", load(str(folder.save(tmp_path, tokenizer)), 1 << 20, "t"), workers)
    await model.prove("a:1", Engine(model.local))
    found = await model.ids(Kind.COMPLETIONS, b'{"prompt": "Hello"}', 5)
    assert found is not None
    assert array("I", found.tokens).tolist() == tokenizer.encode("Hello").ids
    bare = await model.ids(Kind.COMPLETIONS, b'{"prompt":"Hello","add_special_tokens":false}', 5)
    assert bare is not None and len(bare.tokens) == len(found.tokens) - 4
