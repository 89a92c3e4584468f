"""The endpoint picker's own streams on the native transport: what is charged, and for how long."""

from __future__ import annotations

import pytest

from tests.core.h2_rig import LIMITS, Wire, framed
from tests.envoy import gateway as envoy
from warmlane.envoy.picker import Picker
from warmlane.envoy.server import PROCESS
from warmlane.envoy.session import Session
from warmlane.router.config_load import from_data
from warmlane.router.core import Router

native = pytest.importorskip(
    "warmlane._core.h2.connection",
    reason="the native transport is not built: install libnghttp2-dev",
)
streams = pytest.importorskip("warmlane._core.h2.streams")


@pytest.fixture
def wire() -> Wire:
    config = from_data({"pools": [{"replicas": ["http://10.0.0.1:8000"]}]})
    picker = Picker(Router(config), config)
    shared = streams.Shared(**(LIMITS | {"stream_bytes": 1_000_000}))
    return Wire(
        native.Connection, shared, lambda wake: Session(picker, wake), path=PROCESS, counts=False
    )


def test_a_body_is_charged_until_the_choice(wire: Wire) -> None:
    body = envoy.CHAT % (b"word " * 20_000)
    sid = wire.open(PROCESS)
    wire.send_all(sid, framed(envoy.request_headers()))
    wire.send_all(sid, framed(envoy.request_body(body[:60_000], end=False)))
    assert wire.shared.held_bytes == 60_000
    wire.send_all(sid, framed(envoy.request_body(body[60_000:])))
    assert wire.shared.held_bytes == 0
    answers = [envoy.Answer(raw) for raw in wire.answers[sid].messages]
    assert answers[0].endpoint == "10.0.0.1:8000"
    assert envoy.joined(answers[1:]) == body
    wire.client.reset_stream(sid, 0)
    wire.exchange()
    wire.hang_up()


def test_a_stream_that_only_watches_is_not_charged_for_what_passes(wire: Wire) -> None:
    """Nothing is ever answered there: 3 MB of an answer pass a stream that may keep 1 MB."""
    body = envoy.CHAT % b"hello"
    sid = wire.open(PROCESS)
    wire.send_all(sid, framed(envoy.request_headers(observe=True)))
    wire.send_all(sid, framed(envoy.request_body(body, observe=True)))
    wire.send_all(sid, framed(envoy.response_headers(observe=True)))
    for _ in range(100):
        piece = envoy.response_body(b"x" * 30_000, end=False, observe=True)
        wire.send_all(sid, framed(piece))
        assert wire.shared.held_bytes == 0
    assert sid not in wire.answers or not wire.answers[sid].ended
    wire.hang_up()
