"""Requests past saturation behind a real Envoy: who waits, who is refused, and in which turn."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from tests.common import until

from .client import Answer, Ask
from .stage import Stage, chat, stage

CONFIG = """
admission: {enabled: true, backlog_s: 0.001, unstarted: 1, tenant: api-key}
"""
HELD = {"x-answer": "held"}
FILLING = "word " * 800  # two of them take longer than backlog_s
ROOM = 2  # one that runs and one that waits behind it


def asked(made: Stage, text: str, key: str = "", **fields: object) -> asyncio.Task[Answer]:
    headers = {**HELD, **({"authorization": f"Bearer {key}"} if key else {})}
    body = chat(f"{text} {FILLING}", **fields)
    return asyncio.create_task(made.ask(Ask(body, headers=headers)))


def refused(answer: Answer, code: str) -> None:
    assert (answer.status, answer.json["error"]["code"]) == (429, code)
    assert answer.headers["x-llm-d-request-dropped-reason"] == "rejected-saturated"
    assert int(answer.headers["retry-after"]) >= 1


async def waiting(made: Stage) -> float:
    return await made.picker.total("warmlane_admission_waiting")


async def settled(made: Stage, count: int) -> None:
    """Until so many wait in the router."""
    async with asyncio.timeout(20):
        while await waiting(made) != count:  # noqa: ASYNC110 - another process's number
            await asyncio.sleep(0.05)


async def test_who_waits_goes_in_turn_and_the_rest_is_refused(
    tmp_path: Path, transport: str
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    options = ("--config", str(path), "--transport", transport)
    async with stage(tmp_path, pickers={"picker": options}, replicas=1) as made:
        [engine] = made.backends
        made.gate(opened=False)
        first = [asked(made, f"first {number}") for number in range(ROOM)]
        await until(lambda: len(engine.seen) == ROOM)
        async with asyncio.timeout(20):
            while not await made.picker.total("warmlane_admission_active"):  # noqa: ASYNC110
                await asyncio.sleep(0.05)

        later = []
        for number in range(6):
            later.append(asked(made, f"ann {number}", "ann"))
            await settled(made, number + 1)
        later.append(asked(made, "bob 0", "bob"))
        await settled(made, 7)
        assert len(engine.seen) == ROOM

        refused(await asked(made, "of no importance", priority=5), "low_priority_shed")
        hurried = Ask(chat("in a hurry"), headers={**HELD, "x-warmlane-deadline-ms": "1"})
        refused(await made.ask(hurried), "queue_timeout")

        made.gate(opened=True)
        answers = await asyncio.gather(*first, *later)
        assert {answer.status for answer in answers} == {200}
        said = [json.loads(each.body)["messages"][0]["content"] for each in engine.seen]
        texts = [text.removesuffix(f" {FILLING}") for text in said]
        assert len(texts) == ROOM + 7
        assert texts.index("bob 0") < texts.index("ann 5"), "a tenant with much is not first"
        await settled(made, 0)
        assert "Bearer" not in made.picker.log.read_text()
