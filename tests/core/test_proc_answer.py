"""`_core.proc_answer` against its twin and against the protobuf library."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core import twin_proc_answer as twin
from warmlane._core import proc_answer as write
from warmlane._core.proc_wire import REQUEST_BODY, RESPONSE_BODY
from warmlane.envoy.proto import messages


@pytest.mark.parametrize("kind", range(2, 8))
@given(data=st.data())
def test_answers_are_the_twins(kind: int, data: st.DataObject) -> None:
    endpoint = data.draw(st.sampled_from((b"", b"10.0.0.1:8000", b"[::1]:1," * 40)))
    length = data.draw(st.sampled_from((-1, 0, 5, 1 << 40)))
    body = data.draw(st.none() | st.binary(max_size=300) | st.just(b"x" * 5000))
    mutation = write.set_header(b"a", b"b") + write.remove_header(b"c")
    mutation = data.draw(st.sampled_from((b"", mutation)))
    made = write.answer(kind, endpoint, length, mutation, body, b"\x4a\x00")
    assert made == twin.answer(kind, endpoint, length, mutation, body, b"\x4a\x00")


def test_an_answer_reads_as_the_protocol_wants_it() -> None:
    made = messages.ProcessingResponse.FromString(
        write.answer(2, b"1.2.3.4:80", 7, write.remove_header(b"gone"), None)
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


@pytest.mark.parametrize("kind", [REQUEST_BODY, RESPONSE_BODY])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("size", [0, 1, 61_999, 62_000, 62_001, 124_000, 300_001])
def test_pieces_carry_the_body_whole_and_stay_small(kind: int, last: bool, size: int) -> None:
    body = random.Random(size).randbytes(size)
    made = write.pieces(kind, body, last)
    assert made == twin.pieces(kind, body, last)
    assert all(len(piece) < 65_535 for piece in made)
    joined, ends = b"", []
    for piece in made:
        answer = messages.ProcessingResponse.FromString(piece)
        part = answer.request_body if kind == REQUEST_BODY else answer.response_body
        streamed = part.response.body_mutation.streamed_response
        joined += streamed.body
        ends.append(streamed.end_of_stream)
    assert joined == body
    assert ends == [False] * (len(ends) - 1) + [last] if ends else not last


def test_an_immediate_answer() -> None:
    mutation = write.set_header(b"retry-after", b"1")
    for body in (b"{}", b"x" * 10_000):
        raw = write.immediate(503, mutation, body, b"no")
        assert raw == twin.immediate(503, mutation, body, b"no")
        made = messages.ProcessingResponse.FromString(raw).immediate_response
        assert (made.status.code, made.body, made.details) == (503, body, "no")
        assert made.headers.set_headers[0].header.raw_value == b"1"


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="no such kind"):
        write.answer(8, b"")
    with pytest.raises(ValueError, match="no body kind"):
        write.pieces(2, b"", True)


def test_a_failed_allocation_leaves_nothing_behind() -> None:
    for call in (
        lambda: write.answer(2, b"", -1, b"", b"x" * 10_000),
        lambda: write.immediate(503, b"", b"x" * 10_000, b""),
    ):
        write.fail_allocation_after(0)
        with pytest.raises(MemoryError):
            call()
        assert len(call()) > 10_000
