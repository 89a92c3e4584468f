"""Config of a pool's LoRA adapters: what the router may load, and from where. Floor 2.

A source is a name that clients may ask for and the path or URL that engines load it from. A name
that ends in `*` stands for every name that begins so; what it leaves open is one safe word, put
behind the path, so that no client can write a path of its own.
"""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from warmlane.router.errors import ConfigError

# One path segment that is not hidden and cannot climb; vLLM takes any text as a name.
_WORD: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]|\.(?!\.)){0,127}")


class Adapters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """LoRA adapters of a pool: where they may be loaded from, and how many at once."""

    mode: Annotated[
        Literal["read-only", "load"],
        Meta(description="load: missing adapters of `sources` are loaded, cold ones unloaded"),
    ] = "read-only"
    sources: Annotated[
        dict[str, str],
        Meta(description="name -> path or URL as engines see it; NAME* -> what goes before `*`"),
    ] = {}
    base: Annotated[
        str, Meta(description="model that they adapt; empty: the only one that the pool has")
    ] = ""
    slots: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="adapters per replica; null: its max_loras (4 until it tells)"),
    ] = None
    load_s: Annotated[
        float, Meta(gt=0, description="longest wait for a load, with what it has to wait for")
    ] = 30.0
    cold_s: Annotated[
        float, Meta(gt=0, description="half-life of how much an adapter was asked for")
    ] = 120.0


def check_adapters(adapters: Adapters, where: str) -> None:
    """ConfigError for what cannot be meant."""
    for name, path in adapters.sources.items():
        if not name.rstrip("*") or "*" in name[:-1] or not path:
            raise ConfigError(
                f"{where}.sources: {name!r}: must be a name, or the beginning of one and *,"
                " with a path"
            )
    if adapters.mode == "load" and not adapters.sources:
        raise ConfigError(f"{where}.sources: {{}}: mode load without a source can load nothing")


def source_of(adapters: Adapters, name: str) -> str:
    """Where an adapter may be loaded from; "" when it may not."""
    if adapters.mode != "load":
        return ""
    path = adapters.sources.get(name)
    if path is not None:
        return "" if name.endswith("*") else path
    found = [
        (len(start), start)
        for start in adapters.sources
        if start.endswith("*") and name.startswith(start[:-1])
    ]
    if not found:
        return ""
    _, start = max(found)  # the longest beginning says it best
    rest = name[len(start) - 1 :]
    return adapters.sources[start] + rest if _WORD.fullmatch(rest) else ""
