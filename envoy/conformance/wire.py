"""Messages of the two services as a gateway writes and reads them: plain values in and out.

The only module of the suite that touches the protobuf classes. Sources: Envoy's
`service/ext_proc/v3/external_processor.proto` and the gRPC health checking protocol.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import Any

import msgspec
from google.protobuf.message import DecodeError

from warmlane.envoy.conformance.target import BodyMode
from warmlane.envoy.proto.messages import (
    HealthCheckRequest,
    HealthCheckResponse,
    ProcessingRequest,
    ProcessingResponse,
)

PROCESS = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"
HEALTH_CHECK = "/grpc.health.v1.Health/Check"
HEALTH_WATCH = "/grpc.health.v1.Health/Watch"

Headers = list[tuple[str, bytes]]


class Serving(IntEnum):
    """HealthCheckResponse.ServingStatus."""

    UNKNOWN = 0
    SERVING = 1
    NOT_SERVING = 2
    SERVICE_UNKNOWN = 3


class Extras(msgspec.Struct, frozen=True, kw_only=True):
    """What a request message may carry besides its part of the HTTP message."""

    metadata: Mapping[str, Mapping[str, Any]] = {}
    attributes: Mapping[str, Mapping[str, Any]] = {}
    observability: bool = False
    modes: tuple[BodyMode, BodyMode] | None = None
    unwaited: bool = False
    text_values: bool = False


PLAIN = Extras()


class HeaderChange(msgspec.Struct, frozen=True):
    """One entry of HeaderMutation.set_headers.

    raw: the value came in `raw_value`; both: in `value` as well, which Envoy refuses; append: an
    older value stays (in ext_proc replacing is the default); action: HeaderAppendAction.
    """

    name: str
    value: bytes
    raw: bool
    both: bool
    append: bool
    action: int = 0


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """One decoded ProcessingResponse. kind: the name of the member that is set, or ""."""

    kind: str
    size: int
    set_headers: tuple[HeaderChange, ...] = ()
    remove_headers: tuple[str, ...] = ()
    body: bytes | None = None
    streamed: bool = False
    end_of_stream: bool = False
    replaces_all: bool = False
    clear_route_cache: bool = False
    metadata: dict[str, Any] = {}
    status: int = 0
    details: str = ""

    def header(self, name: str) -> bytes | None:
        """The last value set for a header, names compared in lower case."""
        found = [change.value for change in self.set_headers if change.name.lower() == name]
        return found[-1] if found else None


def _fill(value: Any, plain: Any) -> None:
    """A google.protobuf.Value from plain data."""
    if plain is None:
        value.null_value = 0
    elif isinstance(plain, bool):
        value.bool_value = plain
    elif isinstance(plain, int | float):
        value.number_value = plain
    elif isinstance(plain, str):
        value.string_value = plain
    elif isinstance(plain, Mapping):
        value.struct_value.SetInParent()
        for key, item in plain.items():
            _fill(value.struct_value.fields[key], item)
    else:
        value.list_value.SetInParent()
        for item in plain:
            _fill(value.list_value.values.add(), item)


def _plain(value: Any) -> Any:
    """Plain data from a google.protobuf.Value."""
    kind = value.WhichOneof("kind")
    if kind in (None, "null_value"):
        return None
    if kind == "struct_value":
        return {key: _plain(item) for key, item in value.struct_value.fields.items()}
    if kind == "list_value":
        return [_plain(item) for item in value.list_value.values]
    return getattr(value, kind)


def _write(message: Any, extras: Extras) -> bytes:
    for namespace, fields in extras.metadata.items():
        held = message.metadata_context.filter_metadata[namespace]
        held.SetInParent()
        for key, plain in fields.items():
            _fill(held.fields[key], plain)
    for name, fields in extras.attributes.items():
        for key, plain in fields.items():
            _fill(message.attributes[name].fields[key], plain)
    message.observability_mode = extras.observability
    if extras.modes is not None:
        config = message.protocol_config
        config.request_body_mode, config.response_body_mode = extras.modes
        config.send_body_without_waiting_for_header_response = extras.unwaited
    return bytes(message.SerializeToString())


def headers(
    side: str, pairs: Iterable[tuple[str, bytes]], *, end: bool = False, extras: Extras = PLAIN
) -> bytes:
    """A headers message. side: request or response; end: no body follows."""
    message = ProcessingRequest()
    part = getattr(message, f"{side}_headers")
    part.SetInParent()
    part.end_of_stream = end
    for name, value in pairs:
        entry = part.headers.headers.add(key=name)
        if extras.text_values:
            entry.value = value.decode()
        else:
            entry.raw_value = value
    return _write(message, extras)


def body(side: str, data: bytes, *, end: bool = False, extras: Extras = PLAIN) -> bytes:
    """A body message. end: no more body and no trailers."""
    message = ProcessingRequest()
    part = getattr(message, f"{side}_body")
    part.SetInParent()
    part.body = data
    part.end_of_stream = end
    return _write(message, extras)


def trailers(side: str, pairs: Iterable[tuple[str, bytes]], *, extras: Extras = PLAIN) -> bytes:
    """A trailers message."""
    message = ProcessingRequest()
    part = getattr(message, f"{side}_trailers")
    part.SetInParent()
    for name, value in pairs:
        part.trailers.headers.add(key=name, raw_value=value)
    return _write(message, extras)


def _change(option: Any) -> HeaderChange:
    text, raw = option.header.value, bytes(option.header.raw_value)
    return HeaderChange(
        option.header.key,
        raw or text.encode(),
        bool(raw) or not text,
        bool(raw) and bool(text),
        bool(option.append.value),
        int(option.append_action),
    )


def decode(data: bytes) -> Reply:
    """One reply of a picker. Raises ValueError when it is not a ProcessingResponse."""
    message = ProcessingResponse()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise ValueError(f"not a ProcessingResponse: {error}") from error
    kind = message.WhichOneof("response") or ""
    metadata = {key: _plain(value) for key, value in message.dynamic_metadata.fields.items()}
    if kind == "immediate_response":
        part = message.immediate_response
        return Reply(
            kind=kind,
            size=len(data),
            set_headers=tuple(_change(option) for option in part.headers.set_headers),
            remove_headers=tuple(part.headers.remove_headers),
            body=bytes(part.body),
            status=part.status.code,
            details=part.details,
            metadata=metadata,
        )
    if kind.endswith("_trailers"):
        mutation = getattr(message, kind).header_mutation
        return Reply(
            kind=kind,
            size=len(data),
            set_headers=tuple(_change(option) for option in mutation.set_headers),
            remove_headers=tuple(mutation.remove_headers),
            metadata=metadata,
        )
    if not kind:
        return Reply(kind="", size=len(data), metadata=metadata)
    return _common(kind, getattr(message, kind).response, len(data), metadata)


def _common(kind: str, part: Any, size: int, metadata: dict[str, Any]) -> Reply:
    """A headers or body response."""
    data: bytes | None = None
    mutation = part.body_mutation.WhichOneof("mutation")
    if mutation == "body":
        data = bytes(part.body_mutation.body)
    elif mutation == "streamed_response":
        data = bytes(part.body_mutation.streamed_response.body)
    elif mutation == "clear_body" and part.body_mutation.clear_body:
        data = b""
    return Reply(
        kind=kind,
        size=size,
        set_headers=tuple(_change(option) for option in part.header_mutation.set_headers),
        remove_headers=tuple(part.header_mutation.remove_headers),
        body=data,
        streamed=mutation == "streamed_response",
        end_of_stream=part.body_mutation.streamed_response.end_of_stream,
        replaces_all=part.status == 1,
        clear_route_cache=part.clear_route_cache,
        metadata=metadata,
    )


def health_request(service: str) -> bytes:
    """A HealthCheckRequest."""
    return bytes(HealthCheckRequest(service=service).SerializeToString())


def health_status(data: bytes) -> Serving:
    """The status in a HealthCheckResponse."""
    message = HealthCheckResponse()
    message.ParseFromString(data)
    return Serving(message.status)
