"""What admission wants to know of a request besides its prompt: tenant, patience, rank. Floor 3.

Asked of requests that do not take the straight path, and only with admission. An API key leaves
this module as a digest alone, and no tenant's name is ever logged or made a label.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from math import isfinite
from typing import Final

import msgspec

from warmlane.router.config_admission import Admission
from warmlane.router.types import Request

_NAME: Final = 128  # characters of a tenant's name; more are cut
_DIGITS: Final = 18
_KEYS: Final = (b"authorization", b"x-api-key", b"api-key")


class _Body(msgspec.Struct, gc=False):
    user: str = ""


_body = msgspec.json.Decoder(_Body)


def marked(
    request: Request, headers: Mapping[bytes, bytes], body: bytes, config: Admission
) -> Request:
    """The request with its tenant and its longest wait, and no priority that it may not have."""
    priority = request.priority
    if priority < 0 and not config.trust_priority:
        priority = 0
    tenant = _tenant(headers, body, config)
    wait_s = _wait_s(headers, config)
    if priority == request.priority and not tenant and wait_s is None:
        return request
    return msgspec.structs.replace(request, priority=priority, tenant=tenant, wait_s=wait_s)


def header_names(config: Admission | None) -> tuple[bytes, ...] | None:
    """Headers that `marked` may read, for a face that keeps few of them; None: none."""
    if config is None:
        return None
    found = [each.lower().encode() for each in config.deadline_headers]
    if config.tenant == "api-key":
        found += _KEYS
    elif config.tenant == "header":
        found += [each.lower().encode() for each in config.tenant_headers]
    return tuple(found) or None


def _tenant(headers: Mapping[bytes, bytes], body: bytes, config: Admission) -> str:
    """Whose request this is, "" for nobody's in particular."""
    if config.tenant == "none":
        return ""
    if config.tenant == "api-key":
        key = _first(headers, _KEYS)
        return sha256(key.removeprefix(b"Bearer ").strip()).hexdigest()[:16] if key else ""
    if config.tenant == "header":
        name = _first(headers, [each.lower().encode() for each in config.tenant_headers])
        return name.decode("latin-1")[:_NAME]
    try:
        return _body.decode(body).user[:_NAME] if body else ""
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""


def _wait_s(headers: Mapping[bytes, bytes], config: Admission) -> float | None:
    """Seconds that the client says it can wait; None: it does not say, or not a number."""
    told = _first(headers, [each.lower().encode() for each in config.deadline_headers])
    if not told or len(told) > _DIGITS:
        return None
    try:
        milliseconds = float(told)
    except ValueError:
        return None
    return milliseconds / 1000 if isfinite(milliseconds) and milliseconds >= 0 else None


def _first(headers: Mapping[bytes, bytes], names: list[bytes] | tuple[bytes, ...]) -> bytes:
    return next((headers[name] for name in names if name in headers), b"")
