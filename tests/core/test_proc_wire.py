"""`_core.proc_wire` against its twin and against the protobuf library, whole, cut and damaged."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core import proc_messages
from tests.core import twin_proc_wire as twin
from warmlane._core import proc_wire as wire
from warmlane.envoy.proto import messages
from warmlane.router.requests import is_internal


def read(message: bytes) -> dict[str, Any] | None:
    try:
        found = wire.receive(message)
    except wire.WireError:
        return None
    return {name: getattr(found, name) for name in twin.FIELDS}


def read_by_twin(message: bytes) -> dict[str, Any] | None:
    try:
        found = twin.receive(message)
    except twin.WireError:
        return None
    return {name: getattr(found, name) for name in twin.FIELDS}


@given(st.integers(0, 1 << 30))
def test_reads_what_protobuf_wrote(seed: int) -> None:
    made = proc_messages.request(random.Random(seed))
    found = wire.receive(made.SerializeToString())
    name = made.WhichOneof("request")
    assert found.kind == (made.DESCRIPTOR.fields_by_name[name].number if name else 0)
    assert found.observability == made.observability_mode
    assert (found.request_mode >= 0) == made.HasField("protocol_config")
    if found.request_mode >= 0:
        config = made.protocol_config
        assert (found.request_mode, found.response_mode, found.early_body) == (
            config.request_body_mode,
            config.response_body_mode,
            config.send_body_without_waiting_for_header_response,
        )
    part = getattr(made, name) if name else None
    if name and name.endswith("body"):
        assert (found.body, found.end_of_stream) == (part.body, part.end_of_stream)
    elif name and name.endswith("headers"):
        assert found.end_of_stream == part.end_of_stream
    if name and not name.endswith("body"):
        check_headers(found, (part.trailers if name.endswith("trailers") else part.headers).headers)
    check_subset(found, made)


def check_headers(found: wire.Received, headers: Any) -> None:
    pairs = [(each.key.encode(), each.raw_value or each.value.encode()) for each in headers]
    for name, value in found.headers.items():
        assert value == b",".join([each for key, each in pairs if key == name])
    internal = {name for name, _ in pairs if is_internal(name)}
    assert internal <= set(found.internal or [])
    methods = [value for name, value in pairs if name == b":method"]
    assert found.method == (methods[-1] if methods else b"")


def check_subset(found: wire.Received, made: Any) -> None:
    space = made.metadata_context.filter_metadata
    hint = space.get("envoy.lb.subset_hint", {})
    if "x-gateway-destination-endpoint-subset" not in hint:
        assert found.subset is None
        return
    value = hint["x-gateway-destination-endpoint-subset"]
    texts = [value] if isinstance(value, str) else [each for each in value if isinstance(each, str)]
    parts = [part.strip() for text in texts for part in text.split(",")]
    assert found.subset == [part for part in parts if part]


@given(st.integers(0, 1 << 30))
def test_agrees_with_the_twin_on_whole_cut_and_damaged_messages(seed: int) -> None:
    rng = random.Random(seed)
    message = proc_messages.request(rng).SerializeToString()
    assert read(message) == read_by_twin(message)
    damaged = bytearray(message[: rng.randint(0, len(message))])
    for _ in range(rng.randint(0, 3)):
        if damaged:
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
    assert read(bytes(damaged)) == read_by_twin(bytes(damaged))


@given(st.binary(max_size=60))
def test_agrees_with_the_twin_on_noise(message: bytes) -> None:
    assert read(message) == read_by_twin(message)


def test_every_cut_of_a_message_is_read_or_refused_as_the_twin_does() -> None:
    message = proc_messages.request(random.Random(3)).SerializeToString()
    for size in range(len(message) + 1):
        assert read(message[:size]) == read_by_twin(message[:size])


def test_two_messages_in_one_merge_as_the_last_member_of_a_oneof() -> None:
    headers, body = messages.ProcessingRequest(), messages.ProcessingRequest()
    headers.request_headers.headers.headers.add(key=":path", raw_value=b"/x")
    body.request_body.body = b"body"
    joined = headers.SerializeToString() + body.SerializeToString()
    found = wire.receive(joined)
    assert (found.kind, found.body, found.path) == (wire.REQUEST_BODY, b"body", "")


@pytest.mark.parametrize("kind", range(2, 8))
@given(data=st.data())
def test_answers_are_the_twins(kind: int, data: st.DataObject) -> None:
    endpoint = data.draw(st.sampled_from((b"", b"10.0.0.1:8000", b"[::1]:1," * 40)))
    length = data.draw(st.sampled_from((-1, 0, 5, 1 << 40)))
    body = data.draw(st.none() | st.binary(max_size=300) | st.just(b"x" * 5000))
    mutation = wire.set_header(b"a", b"b") + wire.remove_header(b"c")
    mutation = data.draw(st.sampled_from((b"", mutation)))
    made = wire.answer(kind, endpoint, length, mutation, body, b"\x4a\x00")
    assert made == twin.answer(kind, endpoint, length, mutation, body, b"\x4a\x00")


def test_an_answer_reads_as_the_protocol_wants_it() -> None:
    made = messages.ProcessingResponse.FromString(
        wire.answer(2, b"1.2.3.4:80", 7, wire.remove_header(b"gone"), None)
    )
    common = made.request_headers.response
    options = {each.header.key: each for each in common.header_mutation.set_headers}
    assert options["x-gateway-destination-endpoint"].header.raw_value == b"1.2.3.4:80"
    assert options["content-length"].header.raw_value == b"7"
    assert {each.append_action for each in options.values()} == {2}
    assert list(common.header_mutation.remove_headers) == ["gone"]
    assert common.clear_route_cache
    lb = made.dynamic_metadata["envoy.lb"]
    assert lb["x-gateway-destination-endpoint"] == "1.2.3.4:80"


@pytest.mark.parametrize("kind", [wire.REQUEST_BODY, wire.RESPONSE_BODY])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("size", [0, 1, 61_999, 62_000, 62_001, 124_000, 300_001])
def test_pieces_carry_the_body_whole_and_stay_small(kind: int, last: bool, size: int) -> None:
    body = random.Random(size).randbytes(size)
    made = wire.pieces(kind, body, last)
    assert made == twin.pieces(kind, body, last)
    assert all(len(piece) < 65_535 for piece in made)
    joined, ends = b"", []
    for piece in made:
        answer = messages.ProcessingResponse.FromString(piece)
        part = answer.request_body if kind == wire.REQUEST_BODY else answer.response_body
        streamed = part.response.body_mutation.streamed_response
        joined += streamed.body
        ends.append(streamed.end_of_stream)
    assert joined == body
    assert ends == [False] * (len(ends) - 1) + [last] if ends else not last


def test_an_immediate_answer() -> None:
    mutation = wire.set_header(b"retry-after", b"1")
    for body in (b"{}", b"x" * 10_000):
        raw = wire.immediate(503, mutation, body, b"no")
        assert raw == twin.immediate(503, mutation, body, b"no")
        made = messages.ProcessingResponse.FromString(raw).immediate_response
        assert (made.status.code, made.body, made.details) == (503, body, "no")
        assert made.headers.set_headers[0].header.raw_value == b"1"


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="no such kind"):
        wire.answer(8, b"")
    with pytest.raises(ValueError, match="no body kind"):
        wire.pieces(2, b"", True)


def test_a_failed_allocation_leaves_nothing_behind() -> None:
    for call in (
        lambda: wire.answer(2, b"", -1, b"", b"x" * 10_000),
        lambda: wire.immediate(503, b"", b"x" * 10_000, b""),
    ):
        wire.fail_allocation_after(0)
        with pytest.raises(MemoryError):
            call()
        assert len(call()) > 10_000
