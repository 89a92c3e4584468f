"""Plain-Python oracle of `_core.hashing`, over the published `xxhash` package."""

from __future__ import annotations

import xxhash

ZERO_BECOMES = 0x9E3779B185EBCA87


def block_key(parent: int, block: bytes) -> int:
    return xxhash.xxh3_64_intdigest(parent.to_bytes(8, "little") + block) or ZERO_BECOMES


def root_key(model: str, adapter: str = "", salt: str = "") -> int:
    key = 0
    for part in (model, adapter, salt):
        key = block_key(key, part.encode("utf-8", "surrogatepass"))
    return key


def chain(root: int, data: bytes, block: int) -> list[int]:
    keys: list[int] = []
    for start in range(0, len(data) - block + 1, block):
        root = block_key(root, data[start : start + block])
        keys.append(root)
    return keys


def digest(data: bytes, piece: int = 4096) -> int:
    key = 0
    for start in range(0, len(data) - piece + 1, piece):
        key = block_key(key, data[start : start + piece])
    return block_key(key, data[len(data) - len(data) % piece :])
