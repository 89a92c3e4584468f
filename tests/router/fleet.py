"""Small fleets for the tests of the decision core."""

from __future__ import annotations

from typing import Any

from warmlane.router.config import Config
from warmlane.router.config_load import from_data
from warmlane.router.core import Router
from warmlane.router.types import Kind, Request

TURN = 0x9E37_79B9_7F4A_7C15


def config_of(replicas: int = 4, /, **pool: Any) -> Config:
    """One pool "default" of r0..rN."""
    urls = [{"url": f"http://r{i}:8000", "name": f"r{i}"} for i in range(replicas)]
    return from_data({"pools": [{"replicas": urls, **pool}]})


def router_of(replicas: int = 4, /, **pool: Any) -> Router:
    return Router(config_of(replicas, **pool))


def chat(prompt: str | bytes | None = "hello", **fields: Any) -> Request:
    text = prompt.encode() if isinstance(prompt, str) else prompt
    return Request(kind=Kind.CHAT, path="/v1/chat/completions", prompt=text, **fields)


def words(count: int, seed: int = 0) -> str:
    """About `count` tokens of text that no other seed shares."""
    return f"{seed:08x}" * (count // 2)


def idle(router: Router) -> None:
    """No work is left in any column of any pool."""
    assert router.open_tickets == 0
    for lane in router.lanes.values():
        ledger = lane.pool.ledger
        ledger.check_invariants()
        assert ledger.open_tickets == 0
        assert not any(ledger.requests) and not any(ledger.running)
        assert not any(ledger.prefill_tokens) and not any(ledger.decode_tokens)
