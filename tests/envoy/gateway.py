"""A client that plays Envoy: messages in the order a gateway sends them, answers by protobuf."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from warmlane.envoy.proto.messages import ProcessingRequest, ProcessingResponse

NONE, STREAMED, BUFFERED, BUFFERED_PARTIAL, FULL_DUPLEX, GRPC = range(6)
CHAT = b'{"model":"fake","messages":[{"role":"user","content":"%b"}]}'
JSON = {"content-type": "application/json"}


def _headers(into: Any, pairs: Mapping[str, str]) -> None:
    for name, value in pairs.items():
        into.headers.add(key=name, raw_value=value.encode())


def request_headers(
    mode: int | None = FULL_DUPLEX,
    *,
    response_mode: int = FULL_DUPLEX,
    method: str = "POST",
    path: str = "/v1/chat/completions",
    headers: Mapping[str, str] = JSON,
    end: bool = False,
    subset: Any = None,
    early: bool = False,
    observe: bool = False,
) -> bytes:
    made = ProcessingRequest(observability_mode=observe)
    _headers(made.request_headers.headers, {":method": method, ":path": path, **headers})
    made.request_headers.end_of_stream = end
    if mode is not None:
        made.protocol_config.request_body_mode = mode
        made.protocol_config.response_body_mode = response_mode
        made.protocol_config.send_body_without_waiting_for_header_response = early
    if subset is not None:
        space = made.metadata_context.filter_metadata["envoy.lb.subset_hint"]
        space.update({"x-gateway-destination-endpoint-subset": subset})
    return _bytes(made)


def request_body(body: bytes, end: bool = True, observe: bool = False) -> bytes:
    made = ProcessingRequest(observability_mode=observe)
    made.request_body.body = body
    made.request_body.end_of_stream = end
    return _bytes(made)


def request_trailers() -> bytes:
    made = ProcessingRequest()
    _headers(made.request_trailers.trailers, {"x-checksum": "1"})
    return _bytes(made)


def response_headers(
    status: int = 200,
    headers: Mapping[str, str] = JSON,
    *,
    end: bool = False,
    served: str = "",
    upstream: str = "",
    observe: bool = False,
) -> bytes:
    made = ProcessingRequest(observability_mode=observe)
    _headers(made.response_headers.headers, {":status": str(status), **headers})
    made.response_headers.end_of_stream = end
    if served:
        space = made.metadata_context.filter_metadata["envoy.lb"]
        space.update({"x-gateway-destination-endpoint-served": served})
    if upstream:
        attributes = made.attributes["envoy.filters.http.ext_proc"]
        attributes.update({"upstream.address": upstream})
    return _bytes(made)


def response_body(body: bytes, end: bool = True, observe: bool = False) -> bytes:
    made = ProcessingRequest(observability_mode=observe)
    made.response_body.body = body
    made.response_body.end_of_stream = end
    return _bytes(made)


def response_trailers() -> bytes:
    made = ProcessingRequest()
    _headers(made.response_trailers.trailers, {"x-done": "1"})
    return _bytes(made)


def _bytes(made: Any) -> bytes:
    raw: bytes = made.SerializeToString()
    return raw


class Answer:
    """One ProcessingResponse, in the words of a test."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.message = ProcessingResponse.FromString(raw)
        self.kind: str = self.message.WhichOneof("response")

    @property
    def common(self) -> Any:
        return getattr(self.message, self.kind).response

    @property
    def mutation(self) -> Any:
        if self.kind == "immediate_response":
            return self.message.immediate_response.headers
        return self.common.header_mutation

    @property
    def set(self) -> dict[str, str]:
        """Headers that are set; each must overwrite what was there."""
        assert all(each.append_action == 2 for each in self.mutation.set_headers)
        return {
            each.header.key: each.header.raw_value.decode() for each in self.mutation.set_headers
        }

    @property
    def removed(self) -> list[str]:
        return list(self.mutation.remove_headers)

    @property
    def endpoint(self) -> str:
        """The choice; header and metadata must say the same."""
        header = self.set.get("x-gateway-destination-endpoint", "")
        metadata = ""
        if "envoy.lb" in self.message.dynamic_metadata:
            metadata = self.message.dynamic_metadata["envoy.lb"]["x-gateway-destination-endpoint"]
        assert header == metadata
        return header

    @property
    def piece(self) -> tuple[bytes, bool]:
        """A streamed body chunk and whether it is the last."""
        streamed = self.common.body_mutation.streamed_response
        return streamed.body, streamed.end_of_stream

    @property
    def status(self) -> int:
        code: int = self.message.immediate_response.status.code
        return code


def joined(answers: list[Answer]) -> bytes:
    """The body of full-duplex pieces: each small, the last one marked and no other."""
    pieces = [answer.piece for answer in answers]
    assert all(len(piece) <= 62_000 for piece, _ in pieces)
    assert not any(last for _, last in pieces[:-1])
    return b"".join(piece for piece, _ in pieces)
