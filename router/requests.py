"""Headers and body -> Request: what routing needs to know of a client's request, and no more.

Owns the rules about bodies: which paths carry a prompt, what is refused, what is cut out, which
headers are the router's own. Bodies pass on as the same bytes object unless something is cut out.
Never logs a body. Cost: 1.5 us for a 4 KB chat, 5 us for 64 KB of prose (docs/hashing.md).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec

from warmlane._core import scan
from warmlane._core.scan import Scan, members, scan_body
from warmlane.router.errors import RequestError
from warmlane.router.types import Kind, Request

TransferParams = Literal["reject", "strip"]

# Hop-by-hop headers (RFC 9110 section 7.6.1), besides those that Connection names.
HOP_HEADERS: Final = frozenset(
    {
        *(b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate"),
        *(b"proxy-authorization", b"te", b"trailer", b"transfer-encoding", b"upgrade"),
    }
)
# Headers by which routers and gateways talk to each other and to engines; a client's are dropped.
INTERNAL_HEADERS: Final = frozenset({b"x-data-parallel-rank"})
INTERNAL_PREFIXES: Final = (b"x-warmlane-", b"x-gateway-", b"x-llm-d-")

# Where a gateway names the InferenceObjective of a request; the newer name first.
OBJECTIVE_HEADERS: Final = (b"x-llm-d-inference-objective", b"x-gateway-inference-objective")

# Objects that name KV blocks on other engines: vllm-wire.md fact 10.
TRANSFER_FIELDS: Final = ("kv_transfer_params", "ec_transfer_params")

KINDS: Final = {
    "/v1/chat/completions": Kind.CHAT,
    "/v1/completions": Kind.COMPLETIONS,
    "/v1/responses": Kind.RESPONSES,
    "/v1/messages": Kind.MESSAGES,
    "/v1/embeddings": Kind.EMBEDDINGS,
}
SCAN_KIND: Final = {
    Kind.CHAT: scan.CHAT,
    Kind.COMPLETIONS: scan.COMPLETIONS,
    Kind.RESPONSES: scan.RESPONSES,
    Kind.MESSAGES: scan.MESSAGES,
    Kind.EMBEDDINGS: scan.EMBEDDINGS,
    Kind.OTHER: scan.OTHER,
}
# Methods whose body an engine may read.
BODY_METHODS: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})
# The standard library's decoder, which engines use and which takes what msgspec refuses (NaN, a
# byte order mark, UTF-16, lone surrogates), costs 5-9 ns a byte: larger bodies are refused instead.
LENIENT_BYTES: Final = 4 << 20
# Where the fields of a multipart form are looked for: the first and last so many bytes.
FORM_BYTES: Final = 65536
_PRIORITY_DIGITS: Final = 18  # so many fit 64 bits, as for the body's priority

_raw_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


def is_internal(name: bytes) -> bool:
    """Is this (lower-case) header one that a client may not set?"""
    return name in INTERNAL_HEADERS or name.startswith(INTERNAL_PREFIXES)


def kind_of(path: str) -> Kind:
    """The kind of a request by its path; a query string does not count."""
    kind = KINDS.get(path)
    if kind is not None:
        return kind
    return KINDS.get(path.partition("?")[0], Kind.OTHER) if "?" in path else Kind.OTHER


def parse(
    method: str,
    path: str,
    headers: Mapping[bytes, bytes],
    body: bytes,
    *,
    transfer_params: TransferParams = "reject",
    trust_subset: bool = False,
    prompt_bytes: int = scan.PROMPT_CAP,
) -> tuple[Request, bytes]:
    """The request, and the body to send on (the same object unless something was cut out).

    headers: names in lower case; read are content-type, content-encoding, x-session-id,
    x-vllm-priority and, with trust_subset (the listener is not open to clients), x-warmlane-subset
    and OBJECTIVE_HEADERS.
    prompt_bytes: canonical prompt bytes kept at most; what is beyond is not hashed.
    Raises RequestError: 400 for a body on a path with a prompt that is no JSON object, and on any
    path for transfer parameters (with "reject"); 415 for a compressed one.
    """
    subset = _subset(headers) if trust_subset else None
    text_session = headers.get(b"x-session-id", b"").decode("latin-1")
    if not body or method not in BODY_METHODS:
        return Request(kind=Kind.OTHER, path=path, session=text_session, subset=subset), body
    kind = kind_of(path) if method == "POST" else Kind.OTHER
    content_type = headers.get(b"content-type", b"")
    if content_type[:10].lower() == b"multipart/":
        return _form(path, body, text_session, subset), body
    encoding = headers.get(b"content-encoding")
    if encoding is not None and encoding.strip().lower() not in (b"", b"identity"):
        return _compressed(kind, path, text_session, subset), body
    found = scan_body(body, SCAN_KIND[kind], prompt_bytes)
    if found is None:
        found = _decode_in_full(body, kind, prompt_bytes)
        if found is None:
            return Request(kind=Kind.OTHER, path=path, session=text_session, subset=subset), body
    if found.transfer:
        if transfer_params != "strip":
            raise RequestError(
                400,
                f"{found.transfer} is set by the router, a client may not send it",
                param=found.transfer,
                code="transfer_params_not_allowed",
            )
        body = _without(body, TRANSFER_FIELDS)
    return Request(
        kind=kind,
        path=path,
        model=found.model,
        stream=found.stream,
        prompt=found.prompt,
        tokens=found.tokens,
        max_tokens=found.max_tokens,
        salt=found.salt,
        session=text_session or found.session,
        priority=_priority(headers.get(b"x-vllm-priority"), found.priority),
        samples=found.samples,
        reads_cache=found.reads_cache,
        objective=objective_of(headers) if trust_subset else "",
        subset=subset,
    ), body


def rewrite_model(body: bytes, model: str) -> bytes:
    """The body with the value of its top-level `model` replaced; all other bytes stay.

    A body that names no model gets one. Raises RequestError 400 when it is no JSON object.
    """
    name = json.dumps(model, ensure_ascii=False).encode("utf-8", "surrogatepass")
    found = members(body)
    if found is None:
        fields = _lenient(body)
        if fields is None:
            raise _bad_json()
        return json.dumps({**fields, "model": model}).encode()
    pieces, at = [], 0
    for key, start, end in found:
        if _key(body, key, start) == "model":
            pieces += [body[at:start], name]
            at = end
    if at:
        return b"".join(pieces) + body[at:]
    brace = body.index(b"{") + 1
    return body[:brace] + b'"model":' + name + (b"," if found else b"") + body[brace:]


def _key(body: bytes, start: int, value: int) -> str:
    """The unescaped name of the member whose key starts at `start` and whose value at `value`."""
    end = body.rindex(b'"', start, value) + 1
    raw = body[start:end]
    name: str = json.loads(raw) if b"\\" in raw else raw[1:-1].decode("utf-8", "replace")
    return name


def _without(body: bytes, names: tuple[str, ...]) -> bytes:
    """The body without the top-level members of these names, in any spelling or number."""
    found = members(body)
    if found is None:
        raise RequestError(400, "the request body must be UTF-8 JSON to be rewritten")
    keep = [item for item in found if _key(body, item[0], item[1]) not in names]
    if not keep:
        return body[: found[0][0]] + body[found[-1][2] :]
    pieces, at = [], 0
    for index, (key, start, end) in enumerate(found):
        if _key(body, key, start) in names:
            # With the comma before it, or for leading members with the comma behind.
            first = key < keep[0][0]
            cut = (key, found[index + 1][0]) if first else (found[index - 1][2], end)
            pieces.append(body[at : cut[0]])
            at = cut[1]
    return b"".join(pieces) + body[at:]


def _decode_in_full(body: bytes, kind: Kind, prompt_bytes: int) -> Scan | None:
    """A body that the scan does not take: decoded, written plainly, scanned again.

    None: not JSON, on a path where that may be. Raises RequestError 400 where it may not.
    """
    # Engines read UTF-16 and UTF-32 too, so nothing that may begin an object is passed unread.
    start = body[:64].lstrip(b" \t\r\n\0\xef\xbb\xbf\xff\xfe")[:1]
    if kind is Kind.OTHER and start != b"{":
        return None
    try:
        raw: dict[str, Any] = dict(_raw_members.decode(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        fields = _lenient(body)
        if fields is None:
            if kind is Kind.OTHER and len(body) <= LENIENT_BYTES:
                return None
            raise _bad_json() from None
        raw = {name: json.dumps(value).encode() for name, value in fields.items()}
    plain = b",".join(_plain_name(name) + b":" + bytes(value) for name, value in raw.items())
    found = scan_body(b"{" + plain + b"}", SCAN_KIND[kind], prompt_bytes)
    if found is None and (kind is not Kind.OTHER or any(name in raw for name in TRANSFER_FIELDS)):
        raise _bad_json()
    return found


def _plain_name(name: str) -> bytes:
    """A name without escapes; one that needs them is none that the scan knows."""
    plain = json.dumps(name, ensure_ascii=False)
    return b'""' if "\\" in plain else plain.encode("utf-8", "surrogatepass")


def _lenient(body: bytes) -> dict[str, Any] | None:
    """The body as the engines' own decoder reads it; None when it is no JSON object."""
    if len(body) > LENIENT_BYTES:
        return None
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None


def _bad_json() -> RequestError:
    return RequestError(400, "the request body is not a JSON object", code="invalid_json")


def _compressed(kind: Kind, path: str, session: str, subset: frozenset[str] | None) -> Request:
    """A compressed body cannot be checked: refused where it would be read, else passed."""
    if kind is not Kind.OTHER:
        raise RequestError(415, "a compressed request body is not supported here")
    return Request(kind=Kind.OTHER, path=path, session=session, subset=subset)


def _priority(header: bytes | None, told: int) -> int:
    """The header wins over the body's, and what is no integer is ignored: vllm-wire.md part 5."""
    if header is None or len(header) > _PRIORITY_DIGITS:
        return told
    try:
        return int(header)
    except ValueError:
        return told


def objective_of(headers: Mapping[bytes, bytes]) -> str:
    """The InferenceObjective that a gateway names; the newer header first."""
    for name in OBJECTIVE_HEADERS:
        value = headers.get(name)
        if value:
            return value.decode("latin-1")
    return ""


def _subset(headers: Mapping[bytes, bytes]) -> frozenset[str] | None:
    raw = headers.get(b"x-warmlane-subset")
    if raw is None:
        return None
    names = (name.strip() for name in raw.decode("latin-1").split(","))
    return frozenset(name for name in names if name)


def _form(path: str, body: bytes, session: str, subset: frozenset[str] | None) -> Request:
    """A multipart form: routed by load, its model read when it stands near either end."""
    model = _form_field(body[:FORM_BYTES], b"model") or _form_field(body[-FORM_BYTES:], b"model")
    return Request(
        kind=Kind.OTHER, path=path, model=model, session=session, subset=subset, rewrite_model=False
    )


def _form_field(part: bytes, name: bytes) -> str:
    at = part.find(b'form-data; name="' + name + b'"')
    start = part.find(b"\r\n\r\n", at)
    end = part.find(b"\r\n", start + 4)
    if at < 0 or start < 0 or end < 0:
        return ""
    return part[start + 4 : end].decode("utf-8", "replace")
