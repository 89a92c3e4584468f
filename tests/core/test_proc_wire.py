"""`_core.proc_wire` against its twin and against the protobuf library, whole, cut and damaged."""

from __future__ import annotations

import random
from typing import Any

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


@given(st.integers(0, 1 << 30), st.sets(st.sampled_from(proc_messages.NAMES)))
def test_keeps_the_headers_that_are_wanted_besides(seed: int, names: set[str]) -> None:
    message = proc_messages.request(random.Random(seed)).SerializeToString()
    wanted = tuple(name.encode() for name in names)
    found, expected = wire.receive(message, wanted), twin.receive(message, wanted)
    assert (found.headers, found.internal) == (expected.headers, expected.internal)


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
