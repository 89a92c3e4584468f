"""Part of the configuration tree: the Envoy face, and shadow decisions, which `serve` knows too.

Floor 2. As `config`, which imports these two structs; it cannot be imported here.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Port = Annotated[int, Meta(ge=0, le=65535)]
Seconds = Annotated[float, Meta(gt=0)]
Rate = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]


def _note(text: str) -> Meta:
    return Meta(description=text)


class ExtProc(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The Envoy endpoint picker (`warmlane ext-proc`)."""

    host: Annotated[str, _note("address to bind")] = "127.0.0.1"
    port: Annotated[Port, _note("ext_proc streams; 0 takes a free port")] = 9002
    health_port: Annotated[Port, _note("gRPC health service, plaintext; 0 takes a free port")] = (
        9003
    )
    insecure: Annotated[bool, _note("plaintext in place of TLS")] = False
    tls_cert: Annotated[str, _note("PEM file, watched; empty: self-signed at start")] = ""
    tls_key: Annotated[str, _note("PEM file with its private key")] = ""
    transport: Annotated[
        Literal["auto", "native", "grpcio"], _note("auto: native where it is built, else grpcio")
    ] = "auto"
    response_level: Annotated[
        int,
        Meta(
            ge=0,
            le=2,
            description="0: requests only, ends are predicted; 1: headers and end of the answer;"
            " 2: the whole answer, with its usage",
        ),
    ] = 1
    endpoints: Annotated[
        Literal["one", "ordered"],
        _note("ordered: all choices, for gateways that walk a list; most read one address only"),
    ] = "one"
    body_mode: Annotated[
        Literal["none", "streamed", "buffered", "full_duplex"],
        _note("request body mode of a gateway that does not tell it (Envoy before 1.33)"),
    ] = "full_duplex"
    streamed_bytes: Annotated[
        Count,
        _note(
            "bytes of a body that comes before the answer to its headers (STREAMED, early) that are"
            " awaited; the choice is made by them. Below the gateway's"
            " per_connection_buffer_limit_bytes"
        ),
    ] = 16_384
    ask_for_body: Annotated[
        bool,
        _note(
            "ask a gateway that sends no body, or waits with it (NONE, STREAMED), for"
            " BUFFERED_PARTIAL; it must have allow_mode_override"
        ),
    ] = False
    session_token: Annotated[
        bool,
        _note("tell x-session-token in answers; requests that show it go to that replica again"),
    ] = False
    endpoint_scores: Annotated[
        bool, _note("tell each candidate's total in metadata; costs an explanation a request")
    ] = False
    request_cost: Annotated[
        bool, _note("level 2: tell an answer's tokens in metadata, at its end")
    ] = False
    conditional: Annotated[
        bool, _note("Prefer: if-available is 412 where the chosen replica holds nothing of it")
    ] = False
    subset: Annotated[bool, _note("honour the endpoint subset in the gateway's metadata")] = True
    streams: Annotated[
        Count, _note("concurrent streams per connection: answers under way at levels 1 and 2")
    ] = 50_000
    keepalive_s: Annotated[Seconds, _note("silence before a PING asks whether a peer lives")] = 60.0
    prefill_tokens_per_s: Annotated[
        Rate, _note("level 0: first guess of a replica's prefill speed; scrapes correct it")
    ] = 8000.0
    output_tokens_per_s: Annotated[
        Rate, _note("level 0: first guess of one answer's speed; scrapes correct it")
    ] = 40.0
    test_headers: Annotated[
        bool, _note("obey test-epp-endpoint-selection and report the served endpoint; tests only")
    ] = False


class ShadowConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Decisions beside somebody else's: compared, and taken over bit by bit."""

    mode: Annotated[
        Literal["active", "shadow", "least-requests"],
        _note("shadow: decide and report, change nothing; switched at run time by the admin port"),
    ] = "active"
    share: Annotated[
        float,
        Meta(ge=0, le=1, description="share of requests that `active` decides; the rest as shadow"),
    ] = 1.0
    baseline: Annotated[
        Literal["least-requests", "round-robin", "random"],
        _note("serve: who chooses in place of the policy while that only watches"),
    ] = "least-requests"
    prefill_tokens_per_s: Annotated[
        Rate, _note("prefill speed of a replica, to tell tokens as time to the first token")
    ] = 8000.0
