"""gRPC over HTTP/2 as a client on python-h2 sees it: calls, errors, ends, drain; and the twin."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core import h2_rig as rig
from tests.core.h2_rig import LIMITS, Answer, Echo, Wire, framed
from tests.core.twin_h2_connection import TwinConnection

native = pytest.importorskip(
    "warmlane._core.h2.connection",
    reason="the native transport is not built: install libnghttp2-dev",
)
streams = pytest.importorskip("warmlane._core.h2.streams")

Make = Callable[..., Wire]


@pytest.fixture
def wire() -> Iterator[Make]:
    """Wires whose server must have let go of everything when the client is gone."""
    made: list[Wire] = []

    def make(factory: Callable[[Callable[[], None]], Any] = Echo, **changes: Any) -> Wire:
        auto_ack = changes.pop("auto_ack", True)
        shared = streams.Shared(**(LIMITS | changes))
        made.append(Wire(native.Connection, shared, factory, auto_ack=auto_ack))
        return made[-1]

    yield make
    for one in made:
        if not one.lost:
            one.hang_up()
        stats = one.shared.stats()
        assert stats["held_bytes"] == stats["open_streams"] == stats["open_connections"] == 0


@pytest.mark.parametrize("piece", [0, 1, 7, 1000])
def test_echo(wire: Make, piece: int) -> None:
    one = wire()
    sizes = [0, 1, 4096, 16_383, 16_385, 70_000] if piece in (0, 1000) else [0, 1, 300]
    sent = [bytes([size % 251]) * size for size in sizes]
    answer = one.call(*sent, piece=piece)
    assert answer.head == {":status": "200", "content-type": "application/grpc"}
    assert answer.messages == sent
    assert answer.trailers == {"grpc-status": "0"} and answer.ended
    assert one.handlers[0].heard == [*sent, "half_closed", "closed"]


def test_many_streams_share_one_write(wire: Make) -> None:
    one = wire()
    one.exchange()
    before = one.pipe.writes
    ids = [one.open() for _ in range(100)]
    for sid in ids:
        one.send(sid, framed(b"%d" % sid))
    one.step()
    assert one.pipe.writes == before + 1
    assert [one.answers[sid].messages for sid in ids] == [[b"%d" % sid] for sid in ids]


ERRORS: list[tuple[dict[str, Any], dict[str, str]]] = [
    ({"path": "/test.Service/Nope"}, {"grpc-status": "12", "grpc-message": "unknown method"}),
    ({"method": "GET"}, {":status": "405", "allow": "POST"}),
    ({"content_type": "application/json"}, {":status": "415"}),
    ({"content_type": "application/grpc-web"}, {":status": "415"}),
    ({"content_type": "application/grpc+json"}, {":status": "415"}),
    ({"content_type": ""}, {":status": "415"}),
    (
        {"extra": {"grpc-encoding": "gzip"}},
        {"grpc-status": "12", "grpc-accept-encoding": "identity"},
    ),
    ({"extra": {"x-long": "y" * 9000}}, {"grpc-status": "8"}),
]


@pytest.mark.parametrize(("head", "wanted"), ERRORS, ids=lambda value: str(value)[:40])
@pytest.mark.parametrize("end", [True, False])
def test_heads_that_are_answered_at_once(
    wire: Make, head: dict[str, Any], wanted: dict[str, str], end: bool
) -> None:
    """One HEADERS frame with the error; a client that has not ended is told to stop."""
    one = wire()
    sid = one.open(**head, end=end)
    one.exchange()
    answer = one.answers[sid]
    assert wanted.items() <= answer.head.items() and answer.ended and not answer.data
    assert answer.head[":status"] == wanted.get(":status", "200")
    assert answer.reset == (None if end else 0)
    assert one.handlers == []
    assert one.call(b"still here").messages == [b"still here"]


@pytest.mark.parametrize(
    "kind", ["application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8"]
)
def test_content_types_of_grpc(wire: Make, kind: str) -> None:
    one = wire()
    sid = one.open(content_type=kind, extra={"grpc-encoding": "identity", "grpc-timeout": "1S"})
    one.send(sid, framed(b"m"), end=True)
    one.exchange()
    assert one.answers[sid].status == 0


BROKEN = [
    (framed(b"x", flag=1), False, 13, "compressed message without grpc-encoding"),
    (framed(b"x", flag=9), False, 13, "bad message flag"),
    (framed(b"x" * 50)[:20], True, 13, "the stream ended inside a message"),
    (b"\0\0\0", True, 13, "the stream ended inside a message"),
    (b"\0\xff\xff\xff\xff", False, 8, "message of 4294967295 bytes, limit 4000000"),
]


@pytest.mark.parametrize(("data", "end", "status", "text"), BROKEN)
def test_broken_messages(wire: Make, data: bytes, end: bool, status: int, text: str) -> None:
    one = wire()
    sid, other = one.open(), one.open()
    one.send(sid, framed(b"first"))
    one.exchange()
    one.send(sid, data, end=end)
    one.exchange()
    answer = one.answers[sid]
    assert (answer.messages, answer.status, answer.text) == ([b"first"], status, text)
    assert one.handlers[0].heard == [b"first", "closed"]
    one.send(other, framed(b"unharmed"), end=True)
    one.exchange()
    assert one.answers[other].messages == [b"unharmed"] and one.answers[other].status == 0


class Faulty(Echo):
    """Raises where its first message says so."""

    def receive(self, message: bytes) -> None:
        super().receive(message)
        if message == b"receive":
            raise ValueError("receive")

    def half_closed(self) -> None:
        super().half_closed()
        if b"half" in self.heard:
            raise ValueError("half")

    def closed(self) -> None:
        super().closed()
        if b"closed" in self.heard:
            raise ValueError("closed")


@pytest.mark.parametrize("where", [b"receive", b"half", b"closed"])
def test_a_handler_that_fails_ends_its_own_stream_only(wire: Make, where: bytes) -> None:
    one = wire(Faulty)
    calm = one.open()
    answer = one.call(where)
    assert [str(error) for error in one.errors] == [where.decode()]
    assert answer.status == (0 if where == b"closed" else 13)
    one.send(calm, framed(b"on"), end=True)
    one.exchange()
    assert one.answers[calm].status == 0
    assert one.shared.stats()["errors_total"] == 1


def test_a_factory_that_fails(wire: Make) -> None:
    def factory(wake: Callable[[], None]) -> Echo:
        raise ValueError("no handler")

    one = wire(factory)
    assert one.call(b"m").status == 13
    assert [str(error) for error in one.errors] == ["no handler"]


class Slow(Echo):
    """Answers when the test says so."""

    def receive(self, message: bytes) -> None:
        self.heard.append(message)

    def decide(self, status: tuple[int, str] | None = None) -> None:
        self.out = [message for message in self.heard if isinstance(message, bytes)]
        self.status = status
        self.wake()

    def half_closed(self) -> None:
        self.heard.append("half_closed")


def test_answers_that_come_later(wire: Make) -> None:
    one = wire(Slow)
    ids = [one.open() for _ in range(3)]
    for sid in ids:
        one.send(sid, framed(b"%d" % sid), end=True)
    one.exchange()
    assert not one.answers
    before = one.pipe.writes
    for handler in reversed(one.handlers):
        handler.decide((0, ""))
        handler.wake()  # twice is as good as once
    one.exchange()
    assert one.pipe.writes == before + 1
    assert [one.answers[sid].messages for sid in ids] == [[b"%d" % sid] for sid in ids]
    assert all(handler.heard[-1] == "closed" for handler in one.handlers)


def test_reset_while_a_decision_is_pending(wire: Make) -> None:
    one = wire(Slow)
    sid = one.open()
    one.send(sid, framed(b"q"))
    one.exchange()
    one.client.reset_stream(sid, 8)
    one.exchange()
    assert one.handlers[0].heard == [b"q", "closed"]
    before = bytes(one.pipe.written)
    one.handlers[0].decide((0, ""))
    one.exchange()
    assert bytes(one.pipe.written) == before
    assert one.call(b"next").status is None and one.handlers[1].heard == [b"next", "half_closed"]


def test_woken_after_the_connection_is_gone(wire: Make) -> None:
    one = wire(Slow)
    one.send(one.open(), framed(b"q"))
    one.exchange()
    one.hang_up()
    one.handlers[0].decide((0, ""))
    assert one.loop.run() == 0


def test_a_stream_reset_in_the_same_read_is_never_decided(wire: Make) -> None:
    one = wire()
    one.exchange()
    sid = one.open()
    one.send(sid, framed(b"never"))
    one.client.reset_stream(sid)
    one.exchange()
    assert one.handlers == [] and sid not in one.answers


def test_one_handler_wakes_another_inside_its_call(wire: Make) -> None:
    """As a release of admission does: the answer leaves in the same turn."""
    handlers: list[Slow] = []

    class Chain(Slow):
        def receive(self, message: bytes) -> None:
            super().receive(message)
            handlers.append(self)
            if message == b"go":
                handlers[0].decide((0, ""))

    one = wire(Chain)
    first, second = one.open(), one.open()
    one.send(first, framed(b"waits"))
    one.exchange()
    one.send(second, framed(b"go"))
    one.step()
    assert one.answers[first].messages == [b"waits"] and one.answers[first].status == 0


def test_status_after_messages_without_end_of_the_client(wire: Make) -> None:
    one = wire(Slow)
    sid = one.open()
    one.send(sid, framed(b"a") + framed(b"b"))
    one.exchange()
    one.handlers[0].decide((5, "not é found\n"))
    one.exchange()
    answer = one.answers[sid]
    assert answer.messages == [b"a", b"b"] and answer.status == 5
    assert answer.text == "not %C3%A9 found%0A" and answer.ended and answer.reset == 0
    assert one.handlers[0].heard == [b"a", b"b", "closed"]


def test_trailers_of_the_client_end_its_side(wire: Make) -> None:
    one = wire()
    sid = one.open()
    one.send(sid, framed(b"m"))
    one.client.send_headers(sid, [("x-trailer", "1")], end_stream=True)
    one.exchange()
    assert one.answers[sid].messages == [b"m"] and one.answers[sid].status == 0


def test_drain_serves_what_was_opened_before_the_client_knew(wire: Make) -> None:
    one = wire(Slow)
    early = one.open()
    one.send(early, framed(b"early"))
    one.exchange()
    one.server.drain()
    late = one.open()  # the client has not read the GOAWAY yet
    one.send(late, framed(b"late"))
    one.exchange()
    assert one.goaways == [(0, 2**31 - 1), (0, late)]
    refused = one.open()
    one.send(refused, framed(b"refused"))
    one.exchange()
    assert len(one.handlers) == 2 and not one.pipe.closing
    for handler in one.handlers:
        handler.decide((0, ""))
    one.exchange()
    assert one.answers[early].status == one.answers[late].status == 0
    assert one.pipe.closing and not one.pipe.aborted


def test_drain_without_an_answer_to_the_notice(wire: Make) -> None:
    one = wire(Slow)
    one.exchange()
    one.server.drain()
    one.server.drain_now()
    assert one.pipe.closing


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_random_scripts_against_the_twin(data: st.DataObject) -> None:
    """The same client before both servers: the same transcripts, the same answers."""
    seeds = data.draw(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), max_size=40))
    shared = streams.Shared(**LIMITS)
    sides = [
        Wire(native.Connection, shared),
        Wire(TwinConnection, int(LIMITS["message_bytes"])),
    ]
    for side in sides:
        play(side, seeds)
    mine, twin = sides
    assert transcript(mine) == transcript(twin)
    mine.hang_up()
    assert shared.held_bytes == 0


def play(side: Wire, script: list[tuple[int, int]]) -> None:
    """Each action is exchanged before the next; which stream it meets is part of the script."""
    live: list[int] = []
    closed: set[int] = set()
    for kind, pick in script:
        live = [
            one
            for one in live
            if one not in closed and not side.answers[one].ended and side.answers[one].reset is None
        ]
        sid = live[pick % len(live)] if live else 0
        if kind <= 2 or not live:
            bad = ({}, {"path": "/nope"}, {"method": "PUT"}, {"extra": {"grpc-encoding": "br"}})
            live.append(side.open(**bad[pick if kind == 2 else 0]))
        elif kind <= 6:
            size = (0, 5, 20_000, 100_000)[kind - 3]
            side.send_all(sid, framed(bytes([pick]) * size))
        elif kind == 9:
            side.send(sid, (b"\0", framed(b"z", 1), framed(b"z", 3), b"\0\0\0\0\5ab")[pick])
        else:
            closed.add(sid)
            if kind == 7:
                side.client.end_stream(sid)
            else:
                side.client.reset_stream(sid, 8)
        side.exchange()


def transcript(side: Wire) -> tuple[list[Any], dict[int, Answer]]:
    seen = {sid: answer for sid, answer in side.answers.items() if answer != Answer()}
    return [handler.heard for handler in side.handlers], seen


def test_the_rig_sees_a_difference() -> None:
    """A comparison that cannot fail proves nothing."""
    one = Wire(TwinConnection, 10)
    two = Wire(TwinConnection, 1000)
    for side in (one, two):
        side.call(b"x" * 100)
    assert transcript(one) != transcript(two)
    assert rig.unframed(framed(b"a") + framed(b"")) == [b"a", b""]
