"""Plain-Python twin of `_core.kv_events`: decodes with msgspec, applies to the twin of the tree."""

from __future__ import annotations

from typing import Any

import msgspec

from tests.core.radix_twin import RadixTree
from tests.core.twin_hashing import block_key

DONE, MORE, BROKEN, CLEARED = 0, 1, 2, 4
STORED = [
    *("type", "block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium"),
    *("lora_name", "extra_keys", "group_idx", "kv_cache_spec_kind", "window", "locality"),
]
REMOVED = ["type", "block_hashes", "medium", "group_idx", "locality"]
FULL = {None, "full_attention", "mla_attention", "sink_full_attention", "unknown"}
WITNESSES = 1024
ZEROS = dict.fromkeys(
    (
        *("events", "stored", "removed", "clears", "broken", "odd", "unknown_kinds", "orphans"),
        *("unknown_removals", "other_groups", "other_sizes", "ambiguous", "refused"),
        *("unnamed_adapters", "embedded"),
    ),
    0,
)


class Space:
    """What hashes mean, and how many sources agree on it."""

    def __init__(self) -> None:
        self.own: dict[int, int] = {}
        self.sources = 1


class Source:
    def __init__(self, model: str) -> None:
        self.space = Space()
        self.model_key = block_key(0, model.encode())
        self.block_size = 0
        self.group: int | None = None
        self.count = dict(ZEROS)


def number(value: Any) -> int:
    """A block hash in any form as an unsigned 64-bit number."""
    if isinstance(value, bytes):
        return int.from_bytes(value[-8:], "big")
    return int(value) % 2**64


def token(told: Any) -> bytes:
    """One token: an id, a pair (of which the first counts), or what stands for an image."""
    if isinstance(told, list):
        told = told[0]
    if isinstance(told, str):
        told = block_key(0, told.encode()) | 0x80000000
    return int(told & 0xFFFFFFFF).to_bytes(4, "little")


def tier_of(event: dict[str, Any]) -> int:
    if event.get("locality") == "REMOTE":
        return 2
    medium = (event.get("medium") or "gpu").lower()
    if medium.startswith("gp"):
        return 0
    return 1 if medium.startswith(("cp", "ho")) else 2


class Intake:
    """The same calls as the compiled one, without limits of memory."""

    def __init__(self) -> None:
        self.tree = RadixTree()
        self.sources: dict[int, Source] = {}
        self.witness: dict[int, tuple[int, int, Space]] = {}

    def open(self, replica: int, model: str = "") -> None:
        self.sources[replica] = Source(model)

    def reset(self, replica: int) -> None:
        source = self.sources[replica]
        self.clear(replica)
        source.space.sources -= 1
        source.block_size, source.group, source.space = 0, None, Space()

    def clear(self, replica: int) -> None:
        self.tree.clear(replica)
        space = self.sources[replica].space
        if space.sources == 1:
            space.own.clear()

    def apply(self, replica: int, payload: bytes) -> int:
        source, found = self.sources[replica], DONE
        batch = msgspec.msgpack.decode(payload)
        events = batch["events"] if isinstance(batch, dict) else batch[1]
        for event in events:
            if isinstance(event, list):
                names = REMOVED if event[0] == "BlockRemoved" else STORED
                event = dict(zip(names, event, strict=False))
            source.count["events"] += 1
            match event["type"]:
                case "BlockStored":
                    self._stored(replica, source, event)
                case "BlockRemoved":
                    self._removed(replica, source, event)
                case "AllBlocksCleared":
                    source.count["clears"] += 1
                    self.clear(replica)
                    found = CLEARED
                case _:
                    source.count["unknown_kinds"] += 1
        return found

    def _stored(self, replica: int, source: Source, event: dict[str, Any]) -> None:
        count, own = source.count, source.space.own
        hashes, tokens = [number(h) for h in event["block_hashes"]], event["token_ids"]
        size, tier, parent = event["block_size"], tier_of(event), event["parent_block_hash"]
        if not hashes:
            return
        if self._other_group(source, event):
            count["other_groups"] += len(hashes)
            return
        if not tokens or not size:
            self._copies(replica, source, hashes, tier)
            return
        if len(hashes) * size != len(tokens):
            count["odd"] += 1
            return
        if not source.block_size and tier == 0:
            source.block_size = size
        if source.block_size != size:
            count["other_sizes"] += len(hashes)
            return
        above = 0 if parent is None else own.get(number(parent), 0)
        if parent is not None and not above:
            count["orphans"] += len(hashes)
            return
        keys = self._keys(source, event, above)
        if tier:
            keys = [own.get(h, key) for h, key in zip(hashes, keys, strict=True)]
        else:
            self._prove(source, keys[0], hashes[0])
            own = source.space.own
        for h, key in zip(hashes, keys, strict=True):
            count["ambiguous"] += own.get(h, key) != key
            own[h] = key
        self.tree.insert(replica, keys, parent=above, tier=tier)
        count["stored"] += len(keys)

    def _keys(self, source: Source, event: dict[str, Any], above: int) -> list[int]:
        """Own keys of the blocks, by rule 1 of events_apply.h."""
        size, tokens, name = event["block_size"], event["token_ids"], event.get("lora_name")
        extra = event.get("extra_keys") or event.get("mm_keys") or []
        first = event["parent_block_hash"] is None
        adapter = name or ""
        if not name and event.get("lora_id") is not None:
            adapter = f"\1lora_id{event['lora_id']}"
            source.count["unnamed_adapters"] += 1 if first else 0
        root = block_key(source.model_key, adapter.encode())
        parent = block_key(root, b"") if first else above
        keys = []
        for i in range(len(event["block_hashes"])):
            rest = list(extra[i]) if i < len(extra) and extra[i] is not None else []
            if rest and rest[0] == name:
                rest.pop(0)
            salts = [at for at, each in enumerate(rest) if isinstance(each, str)]
            if first and i == 0 and salts:
                parent = block_key(root, rest.pop(salts[-1]).encode())
            for each in rest:
                parent = block_key(parent, msgspec.msgpack.encode(each))
                source.count["embedded"] += 1
            block = tokens[i * size : (i + 1) * size]
            parent = block_key(parent, b"".join(map(token, block)))
            keys.append(parent)
        return keys

    def _copies(self, replica: int, source: Source, hashes: list[int], tier: int) -> None:
        for h in hashes:
            key = source.space.own.get(h)
            if key is None or key not in self.alive():
                source.count["orphans"] += 1
                continue
            self.tree.insert(replica, [key], parent=self.tree.parent[key], tier=tier)
            source.count["stored"] += 1

    @staticmethod
    def _other_group(source: Source, event: dict[str, Any]) -> bool:
        if event.get("kv_cache_spec_kind") not in FULL:
            return True
        group = event.get("group_idx")
        if group is None:
            return False
        if source.group is None:
            source.group = group
        return source.group != group

    def _removed(self, replica: int, source: Source, event: dict[str, Any]) -> None:
        count, own, group = source.count, source.space.own, event.get("group_idx")
        hashes = [number(h) for h in event["block_hashes"]]
        if group is not None and source.group is not None and group != source.group:
            count["other_groups"] += len(hashes)
            return
        known = [h for h in hashes if h in own]
        removed = self.tree.remove(replica, [own[h] for h in known], tier=tier_of(event))
        count["removed"] += removed
        count["unknown_removals"] += len(hashes) - removed
        alive = self.alive()
        for h in known:
            if own.get(h, 0) not in alive:
                own.pop(h, None)

    def alive(self) -> set[int]:
        """Blocks that the tree still has: held by somebody, or above one that is."""
        found: set[int] = set()
        for mine in self.tree.copies.values():
            for key in mine:
                at = key
                while at and at not in found:
                    found.add(at)
                    at = self.tree.parent[at]
        return found

    def _prove(self, source: Source, own: int, h: int) -> None:
        seen = self.witness.get(own % WITNESSES)
        if seen is not None and seen[0] == own and seen[1] == h and seen[2] is not source.space:
            big, small = seen[2], source.space
            if big.sources and small.sources:
                big.own.update(small.own)
                for each in self.sources.values():
                    if each.space is small:
                        each.space = big
                        big.sources += 1
                small.sources = 0
                self.witness = {
                    at: (o, g, big if s is small else s) for at, (o, g, s) in self.witness.items()
                }
        self.witness[own % WITNESSES] = (own, h, source.space)
