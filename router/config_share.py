"""The section `share`: several routers before the same replicas. Floor 2, no behaviour but checks.

See docs/share.md.
"""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from warmlane.router.errors import ConfigError


class Sharing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Several routers before the same replicas: how they tell each other of their work."""

    url: Annotated[
        str,
        Meta(
            description="Valkey or Redis: redis://[user@]host:port, rediss://, unix://; empty: none"
        ),
    ] = ""
    password_file: Annotated[str, Meta(description="file with its password; empty: none")] = ""
    password_env: Annotated[
        str, Meta(description="or the environment variable that holds the password")
    ] = ""
    ca_file: Annotated[
        str, Meta(description="PEM file with the authorities of rediss://; empty: the system's")
    ] = ""
    namespace: Annotated[
        str, Meta(description="routers of one namespace hear each other; the channel's name")
    ] = "warmlane"
    interval_s: Annotated[
        float, Meta(gt=0, description="time between two messages of this router")
    ] = 0.05
    expire_s: Annotated[
        float, Meta(gt=0, description="silence after which a peer's work is not believed any more")
    ] = 2.0
    timeout_s: Annotated[
        float, Meta(gt=0, description="silence of the server after which it counts as lost")
    ] = 1.0
    prefixes: Annotated[
        bool, Meta(description="tell block keys of what was sent where, for the approximate view")
    ] = True
    prefix_bytes: Annotated[
        int, Meta(ge=8, le=8_388_608, description="block keys in one message; more are dropped")
    ] = 4_194_304
    routers: Annotated[
        int,
        Meta(
            ge=1,
            le=256,
            description="routers before these replicas, for when they cannot hear each other",
        ),
    ] = 1


def check_share(share: Sharing) -> None:
    """ConfigError for what does not fit together."""
    if share.password_file and share.password_env:
        raise ConfigError(f"share.password_env: {share.password_env!r}: password_file is set too")
    if share.expire_s <= 2 * share.interval_s:
        raise ConfigError(
            f"share.expire_s: {share.expire_s:g}: must be more than two intervals"
            f" ({share.interval_s:g} s each)"
        )
    if not share.namespace or not share.namespace.isprintable() or " " in share.namespace:
        raise ConfigError(f"share.namespace: {share.namespace!r}: must be a word")
    if not share.url:
        return
    try:
        parts = urlsplit(share.url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"share.url: {error}") from error
    if parts.password is not None:
        raise ConfigError("share.url: holds a password: use share.password_file or password_env")
    if parts.query or parts.fragment:
        raise ConfigError("share.url: must have no ?query and no #fragment")
    if parts.scheme == "unix" and parts.path and not parts.hostname:
        return
    if parts.scheme not in ("redis", "rediss") or not parts.hostname or port == 0:
        raise ConfigError(
            f"share.url: {share.url!r}: must be redis://host:port, rediss://host:port or unix:///path"
        )
