"""What an API server remembers: objects by collection, one version counter, a window of events.

Semantics follow the Kubernetes API concepts page: one counter for all collections, lists that are a
snapshot, label and field selectors, a watch that sees an object leave its selector as DELETED, and
a history that is forgotten (`compact`), after which old versions are answered 410.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Json = dict[str, Any]
Select = Callable[[Json], bool]


class Gone(Exception):
    """The asked version is older than the history."""


class Change(NamedTuple):
    """One write: the object before it (None: created) and after it (None: deleted)."""

    version: int
    before: Json | None
    after: Json | None


@dataclass
class Collection:
    """Objects of one resource in all namespaces."""

    objects: dict[tuple[str, str], Json] = field(default_factory=dict)
    history: list[Change] = field(default_factory=list)
    floor: int = 0  # versions below it are forgotten


class Store:
    """All collections. Writers call put and delete; every write wakes the watchers."""

    def __init__(self) -> None:
        self.version = 100
        self.collections: dict[str, Collection] = {}
        self.wake: list[Callable[[], None]] = []
        self._uids = itertools.count(1)

    def install(self, *resources: str) -> None:
        """Make resources known, as a CRD does: "group/version/plural"."""
        for resource in resources:
            self.collections.setdefault(resource, Collection(floor=self.version))

    def put(self, resource: str, value: Json) -> Json:
        """Create or replace; fills in namespace, uid, creation time and version."""
        value = copy.deepcopy(value)
        meta = value.setdefault("metadata", {})
        namespace = meta.setdefault("namespace", "default")
        collection = self.collections[resource]
        key = (namespace, meta["name"])
        before = collection.objects.get(key)
        same = before["metadata"] if before is not None else {}
        meta.setdefault("uid", same.get("uid") or f"uid-{next(self._uids)}")
        made = f"2026-01-01T00:00:{self.version % 60:02d}Z"
        meta.setdefault("creationTimestamp", same.get("creationTimestamp") or made)
        self._write(collection, key, before, value)
        return value

    def change(self, resource: str, name: str, namespace: str = "default", **parts: Json) -> Json:
        """Merge into the top-level parts of an object."""
        value = copy.deepcopy(self.collections[resource].objects[namespace, name])
        for part, more in parts.items():
            value[part] = {**value.get(part, {}), **more}
        return self.put(resource, value)

    def delete(self, resource: str, name: str, namespace: str = "default") -> None:
        collection = self.collections[resource]
        before = collection.objects.get((namespace, name))
        if before is not None:
            self._write(collection, (namespace, name), before, None)

    def compact(self) -> None:
        """Forget all history: every version before now is too old."""
        for collection in self.collections.values():
            collection.history.clear()
            collection.floor = self.version

    def listed(self, resource: str, namespace: str, select: Select) -> list[Json]:
        objects = self.collections[resource].objects
        return [
            value
            for (ns, _), value in sorted(objects.items())
            if namespace in ("", ns) and select(value)
        ]

    def events(
        self, resource: str, since: int, namespace: str, select: Select
    ) -> Iterator[tuple[int, str, Json]]:
        """(version, type, object) after `since`. Raises Gone."""
        collection = self.collections[resource]
        if since < collection.floor:
            raise Gone
        for version, before, after in collection.history:
            if version <= since:
                continue
            value = after if after is not None else before
            assert value is not None
            if namespace not in ("", value["metadata"]["namespace"]):
                continue
            was, is_ = before is not None and select(before), after is not None and select(after)
            if is_:
                yield version, "MODIFIED" if was else "ADDED", value
            elif was:
                # What leaves the selector is told as it was, with the version of the change.
                gone = copy.deepcopy(before if after is None else after)
                assert gone is not None
                gone["metadata"]["resourceVersion"] = str(version)
                yield version, "DELETED", gone

    def _write(
        self, collection: Collection, key: tuple[str, str], before: Json | None, after: Json | None
    ) -> None:
        self.version += 1
        if after is None:
            del collection.objects[key]
        else:
            after["metadata"]["resourceVersion"] = str(self.version)
            collection.objects[key] = after
        collection.history.append(Change(self.version, before, after))
        for wake in self.wake:
            wake()


def selector(labels: str, fields: str) -> Select:
    """labelSelector (=, ==, !=, in, notin, key, !key) and fieldSelector (metadata.name)."""
    wanted = [_requirement(part) for part in re.split(r",(?![^(]*\))", labels) if part.strip()]
    names = [part.partition("=") for part in fields.split(",") if part]
    assert all(key == "metadata.name" for key, _, _ in names), fields

    def select(value: Json) -> bool:
        have = value["metadata"].get("labels") or {}
        return all(test(have) for test in wanted) and all(
            value["metadata"]["name"] == name for _, _, name in names
        )

    return select


def _requirement(part: str) -> Callable[[dict[str, str]], bool]:
    part = part.strip()
    match = re.fullmatch(r"(\S+)\s+(in|notin)\s+\(([^)]*)\)", part)
    if match:
        key, how, inside = match.groups()
        values = {value.strip() for value in inside.split(",")}
        return lambda have: (have.get(key) in values) == (how == "in")
    if "!=" in part:
        key, _, value = part.partition("!=")
        return lambda have: have.get(key) != value
    if "=" in part:
        key, _, value = part.replace("==", "=").partition("=")
        return lambda have: have.get(key) == value
    if part.startswith("!"):
        return lambda have: part[1:] not in have
    return lambda have: part in have
