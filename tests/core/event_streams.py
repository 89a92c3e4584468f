"""Random engines: what they store and remove, told in every form that engines have."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import msgspec

SIZE = 2
FORMS = ("map", "array", "legacy")
HASHES = ("unsigned", "signed", "bytes32", "bytes16")


class Engine:
    """A cache that tells the truth: chains are stored in order, leaves are removed first."""

    def __init__(self, source: random.Random, seed: str, form: str, hashes: str) -> None:
        self.random = source
        self.seed, self.form, self.hashes = seed, form, hashes
        self.copies: dict[tuple[bytes, str], int] = {}  # (digest, medium) -> copies
        self.above: dict[bytes, bytes | None] = {}

    def digest(self, parent: bytes | None, block: tuple[Any, ...]) -> bytes:
        return hashlib.sha256(repr((self.seed, parent, block)).encode()).digest()

    def label(self, digest: bytes | None) -> Any:
        if digest is None:
            return None
        if self.hashes.startswith("bytes"):
            return digest if self.hashes == "bytes32" else digest[-16:]
        return int.from_bytes(digest[-8:], "big", signed=self.hashes == "signed")

    def holds(self, digest: bytes, medium: str = "GPU") -> bool:
        return self.copies.get((digest, medium), 0) > 0

    def store(self) -> dict[str, Any]:
        """One prompt: hits what is there, stores what follows, as one event."""
        source = self.random
        name = source.choice([None, None, "red"]) if self.form != "legacy" else None
        salt = source.choice([None, None, "s"]) if self.form != "legacy" else None
        length = source.randrange(1, 7)
        image = source.randrange(length) if source.random() < 0.2 else -1
        image = -1 if self.form == "legacy" else image
        other = source.choice(["", "", "", "pairs", "digests"])
        tokens, extras, digests = [], [], []
        parent: bytes | None = None
        for i in range(length):
            block: list[Any] = [source.choice([7, 300, 70_000]) for _ in range(SIZE)]
            if other == "pairs":
                block = [[each, 9] for each in block]
            elif other == "digests" and source.random() < 0.3:
                block[source.randrange(SIZE)] = source.choice(["digest-a", "digest-b" * 9])
            extra = [name] if name else []
            extra += [["image-1", 3]] if i == image else []
            extra += [salt] if salt and i == 0 else []
            key = self.digest(parent, (tuple(block), repr(extra)))
            self.above[key] = parent
            parent = key
            tokens.append(block)
            extras.append(extra or None)
            digests.append(key)
        hit = 0
        while hit < length and self.holds(digests[hit]):
            hit += 1
        if hit == length:
            hit -= 1  # the last block is computed again
        for key in digests[hit:]:
            self.copies[key, "GPU"] = self.copies.get((key, "GPU"), 0) + 1
        mm_keys = self.form == "map" and not name and not salt and source.random() < 0.5
        extra_field = "mm_keys" if mm_keys else "extra_keys"
        return {
            "type": "BlockStored",
            "block_hashes": [self.label(key) for key in digests[hit:]],
            "parent_block_hash": self.label(digests[hit - 1]) if hit else None,
            "token_ids": [token for block in tokens[hit:] for token in block],
            "block_size": SIZE,
            "lora_id": 4 if name else None,
            "medium": "GPU",
            "lora_name": name,
            extra_field: extras[hit:] if any(extras[hit:]) else None,
            "group_idx": 0,
            "kv_cache_spec_kind": "full_attention",
        }

    def remove(self) -> dict[str, Any] | None:
        """One copy of a block that nothing hangs on, in one medium."""
        live = [key for key, count in self.copies.items() if count]
        if not live:
            return None
        digest, medium = self.random.choice(live)
        if medium == "GPU":
            used = {self.above[key] for key, where in live if where == "GPU"}
            if digest in used and self.copies[digest, medium] == 1:
                return None
        self.copies[digest, medium] -= 1
        return {
            "type": "BlockRemoved",
            "block_hashes": [self.label(digest)],
            "medium": medium,
            "group_idx": 0,
        }

    def offload(self) -> dict[str, Any] | None:
        """A copy goes to another tier, told without tokens."""
        live = [key for (key, medium), count in self.copies.items() if count and medium == "GPU"]
        if not live:
            return None
        digest, medium = self.random.choice(live), self.random.choice(["CPU", "STORAGE"])
        self.copies[digest, medium] = self.copies.get((digest, medium), 0) + 1
        return {
            **dict.fromkeys(("lora_id", "lora_name", "extra_keys"), None),
            "type": "BlockStored",
            "block_hashes": [self.label(digest)],
            "parent_block_hash": None,
            "token_ids": [],
            "block_size": 0,
            "medium": medium,
        }

    def clear(self) -> dict[str, Any]:
        self.copies.clear()
        return {"type": "AllBlocksCleared"}

    def window(self) -> dict[str, Any]:
        """A sliding-window group of a hybrid model tells something of its own."""
        return {
            "type": "BlockStored",
            "block_hashes": [self.label(self.digest(None, ("w",)))],
            "parent_block_hash": None,
            "token_ids": [1, 2, 3, 4, 5, 6],
            "block_size": SIZE,
            "lora_id": None,
            "medium": "GPU",
            "lora_name": None,
            "extra_keys": None,
            "group_idx": 1,
            "kv_cache_spec_kind": "sliding_window",
        }

    def batch(self) -> bytes:
        """The payload of one step."""
        events: list[dict[str, Any] | None] = []
        for _ in range(self.random.randrange(1, 4)):
            act = self.random.random()
            if act < 0.5:
                events.append(self.store())
            elif act < 0.8:
                events.append(self.remove())
            elif act < 0.9:
                events.append(self.offload() if self.form != "legacy" else None)
            elif act < 0.93:
                events.append(self.clear())
            elif act < 0.96 and self.form != "legacy":
                events.append(self.window())
            else:
                events.append({"type": "SomethingNew", "block_hashes": [1, {"a": [None]}]})
        told = [self.told(event) for event in events if event is not None]
        body: Any = [1.5, told, 0]
        if self.form == "map" and self.random.random() < 0.2:
            body = {"ts": 1.5, "events": told, "data_parallel_rank": 0}
        return msgspec.msgpack.encode(body)

    def told(self, event: dict[str, Any]) -> Any:
        """The event in this engine's form."""
        if self.form == "map":
            kept = {name: value for name, value in event.items() if value is not None}
            for needed in ("parent_block_hash",):
                if event["type"] == "BlockStored":
                    kept.setdefault(needed, None)
            kept["from_the_future"] = [{"x": b"y" * 40}, 1.5]
            return kept
        values = list(event.values())
        if event["type"] == "BlockStored":
            order = (
                *("type", "block_hashes", "parent_block_hash", "token_ids", "block_size"),
                *("lora_id", "medium", "lora_name", "extra_keys", "group_idx"),
                "kv_cache_spec_kind",
            )
            values = [event.get(name) for name in order]
            return values[:7] if self.form == "legacy" else values
        if event["type"] == "BlockRemoved":
            return values[:3] if self.form == "legacy" else values
        return values
