"""A picker that only watches: Envoy chooses by itself, and says afterwards whom it took."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import config
from .backend import Backend
from .client import Ask
from .config import Tree
from .stage import BUILT, chat, stage

ASKED = 6
DECISIONS = "warmlane_shadow_decisions_total"


def told_by_attribute(tree: Tree, backends: list[Backend]) -> None:
    del backends
    config.ext_proc(config.listener(tree))["response_attributes"] = ["upstream.address"]


def observed(tree: Tree, backends: list[Backend]) -> None:
    """Envoy sends copies and waits for nothing."""
    told_by_attribute(tree, backends)
    found = config.ext_proc(config.listener(tree))
    found["observability_mode"] = True
    found["deferred_close_timeout"] = "0.1s"
    config.set_modes(
        config.listener(tree),
        request_body_mode="STREAMED",
        response_body_mode="STREAMED",
        request_trailer_mode="SKIP",
        response_trailer_mode="SKIP",
    )


@pytest.mark.parametrize("mode", ["shadow", "observability"])
@pytest.mark.parametrize("transport", BUILT)
async def test_what_envoy_chose_is_compared(tmp_path: Path, transport: str, mode: str) -> None:
    edit, options = (told_by_attribute, ("--shadow",)) if mode == "shadow" else (observed, ())
    async with stage(
        tmp_path,
        name=config.OVERRIDE_HOST,
        pickers={"picker": ("--transport", transport, *options)},
        edit=edit,
    ) as running:
        served = []
        for _ in range(ASKED):
            answer = await running.ask(Ask(chat("the same beginning " * 200)))
            assert answer.status == 200
            served.append(answer.headers["x-replica"])
        assert len(set(served)) == 2, "Envoy balances by itself"
        picker = running.picker
        await picker.reaches(DECISIONS, ASKED)
        assert await picker.total(DECISIONS, agreed="unknown") == 0
        assert await picker.total("warmlane_shadow_hit_tokens_total") > 0
        assert await picker.total("warmlane_rejected_total") == 0
