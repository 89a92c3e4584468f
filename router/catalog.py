"""Model names to pools: aliases, adapters, weighted splits, and what /v1/models answers. Floor 3.

Names come from the config, from rewrites that discovery finds and from what replicas list. The
config's own entry for a name comes first, then an exact rewrite, then a pool's generic one. A name
resolves to one target; targets are kept until a pool changes its models. Names that nobody is known
to serve, and those that a rewrite covers, are kept apart, a few short ones at a time, so that no
table grows with what clients write.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from warmlane._core.hashing import digest
from warmlane.router.config import Config, ModelConfig
from warmlane.router.errors import RequestError
from warmlane.router.pool import Pool, Replica
from warmlane.router.rewrites import Arms, Rewrite, Rewrites
from warmlane.router.types import JsonObject, Kind, Request

_MAX_GUESSES = 256  # unknown names kept, of at most that many characters
_RAND_BITS = 32  # bits of `rand` that choose the arm of a split; others break ties


class Target(NamedTuple):
    """Where a model name leads.

    model: base model for the prefix key and the `served` filter ("" unknown).
    engine_name: the name the engine must see.
    """

    pool: str
    model: str
    adapter: str
    engine_name: str


class Catalog:
    """Resolves model names over the pools of one router."""

    def __init__(self, config: Config, pools: Mapping[str, Pool]) -> None:
        self._pools = pools
        self._rewrites: dict[str, Rewrites] = {}
        self._objectives: dict[str, Mapping[str, int]] = {}
        self._ruled: dict[str, tuple[str, Arms]] = {}
        self._targets: dict[str, Target] = {}
        self._guesses: dict[str, Target] = {}
        self._listeners: list[Callable[[], None]] = []
        self.follow(config)
        for pool in pools.values():
            self.watch(pool)

    def follow(self, config: Config) -> None:
        """Take the names of a config, whose pools are there already."""
        self._default = config.default_pool or config.pools[0].name
        self._entries = {entry.name: entry for entry in config.models}
        self._arms = {
            entry.name: list(accumulate(arm.weight for arm in entry.split))
            for entry in config.models
            if entry.split
        }
        for name in self._rewrites.keys() - self._pools.keys():
            del self._rewrites[name]
        self._forget()

    def watch(self, pool: Pool) -> None:
        """A pool that is new."""
        pool.on_change(self._on_change)

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener()` whenever names may lead elsewhere."""
        self._listeners.append(listener)

    def resolve(self, request: Request, rand: int) -> Target:
        """The target of a request. Raises RequestError 404 `model_not_found`."""
        name = request.model
        target = self._targets.get(name) or self._guesses.get(name) or self._resolve(request, rand)
        if not request.rewrite_model and target.engine_name != name:
            raise RequestError(
                400,
                f"the model {name!r} stands for another name, and a body that is streamed"
                " through cannot be rewritten; ask for the engine's own name",
                param="model",
                code="model_alias_not_rewritable",
            )
        return target

    def set_rewrites(self, pool: str, found: Sequence[Rewrite]) -> None:
        """All rewrites of one pool, in place of those before."""
        table = Rewrites(found)
        before = self._rewrites.get(pool)
        if before is not None and before.source == table.source:
            return
        self._rewrites[pool] = table
        self._forget()

    def set_objectives(self, pool: str, found: Mapping[str, int]) -> None:
        """Priorities by objective name of one pool, in place of those before."""
        self._objectives[pool] = dict(found)

    def importance(self, pool: str, objective: str) -> int | None:
        """Priority of an InferenceObjective, higher is more important; None: not known."""
        return self._objectives.get(pool, {}).get(objective)

    def fixed(self, name: str) -> Target | None:
        """The target of every request for this name, until a pool changes; None: it depends on the
        request, or there is none."""
        entry = self._entries.get(name)
        if entry.split if entry is not None else self._rule(name) is not None:
            return None
        try:
            return self.resolve(Request(kind=Kind.OTHER, model=name), 0)
        except RequestError:
            return None

    def models(self) -> list[JsonObject]:
        """Merged entries of /v1/models: every name a client may ask for, sorted, each once."""
        found: dict[str, JsonObject] = {}
        for pool in self._pools.values():
            for name in pool.config.models:
                found[name] = _entry(name)
            for replica in pool:
                listed = replica.models
                if listed is None:
                    continue
                for name in listed.models:
                    found[name] = _entry(name, max_model_len=listed.max_model_len)
                for name, base in listed.adapters.items():
                    found[name] = _entry(name, parent=base, max_model_len=listed.max_model_len)
            for name in pool.config.adapters.sources:
                if pool.adapters.source(name):
                    found.setdefault(name, _entry(name, parent=pool.adapters.base() or None))
        for table in self._rewrites.values():
            for name in table.exact:
                found.setdefault(name, _entry(name))
        for entry in self._entries.values():
            found.setdefault(entry.name, _entry(entry.name))
        return [found[name] for name in sorted(found)]

    def _resolve(self, request: Request, rand: int) -> Target:
        name = request.model
        entry = self._entries.get(name)
        if entry is not None and entry.split:
            return self._arm(entry, request, rand)
        if entry is None:
            ruled = self._ruled.get(name) or self._rule(name)
            if ruled is not None:
                return self._rewritten(*ruled, request, rand)
        target = self._served_target(name) if entry is None else self._entry_target(entry)
        if target is not None:
            self._targets[name] = target
            return target
        target = self._loadable_target(name) or self._unknown_target(name)
        if len(name) <= _MAX_GUESSES:
            if len(self._guesses) >= _MAX_GUESSES:
                self._guesses.clear()
            self._guesses[name] = target
        return target

    def _arm(self, entry: ModelConfig, request: Request, rand: int) -> Target:
        """An arm by weight. A session stays in its arm: its prefix is warm there."""
        sums = self._arms[entry.name]
        chance = digest(request.session.encode()) if request.session else rand
        point = (chance % (1 << _RAND_BITS)) / (1 << _RAND_BITS) * sums[-1]
        arm = entry.split[next(i for i, end in enumerate(sums) if point < end)]
        return self._named_target(arm.pool, arm.model, arm.adapter, entry.name)

    def _rule(self, name: str) -> tuple[str, Arms] | None:
        """The pool and the targets of the rewrite that applies to a name."""
        tables = self._rewrites
        if not tables:
            return None
        exact = ((p, table.exact[name]) for p, table in tables.items() if name in table.exact)
        found = next(exact, None)
        if found is None:
            served = self._served_target(name)
            pools = [served.pool] if served is not None else [self._default, *tables]
            generic = ((p, tables[p].generic) for p in pools if p in tables)
            found = next(((p, arms) for p, arms in generic if arms is not None), None)
        if found is not None and len(name) <= _MAX_GUESSES:
            if len(self._ruled) >= _MAX_GUESSES:
                self._ruled.clear()
            self._ruled[name] = found
        return found

    def _rewritten(self, pool: str, arms: Arms, request: Request, rand: int) -> Target:
        """A session stays with its target: its prefix is warm there."""
        chance = digest(request.session.encode()) if request.session else rand
        model = arms.choose(chance)
        return self._named_target(pool, model, "", model)

    def _entry_target(self, entry: ModelConfig) -> Target:
        pool = entry.pool
        if not pool:
            served = self._served_target(entry.adapter or entry.model or entry.name)
            pool = self._default if served is None else served.pool
        return self._named_target(pool, entry.model, entry.adapter, entry.name)

    def _named_target(self, pool: str, model: str, adapter: str, name: str) -> Target:
        if not adapter:
            engine_name = model or name
            base = _base_of(self._pools[pool], engine_name)
            if base is None:
                return Target(pool, engine_name, "", engine_name)
            return Target(pool, base, engine_name, engine_name)
        base = model or _base_of(self._pools[pool], adapter) or self._pools[pool].adapters.base()
        return Target(pool, base, adapter, adapter)

    def _served_target(self, name: str) -> Target | None:
        """The first pool whose config or whose replicas list the name."""
        for pool in self._pools.values():
            if name in pool.config.models:
                return self._named_target(pool.name, name, "", name)
            narrow = bool(pool.config.models)  # then replicas may add adapters, not models
            for replica in pool:
                listed = replica.models
                if listed is None:
                    continue
                if name in listed.adapters or (name in listed.models and not narrow):
                    return self._named_target(pool.name, name, "", name)
        return None

    def _loadable_target(self, name: str) -> Target | None:
        """The first pool whose replicas could load an adapter of that name."""
        for pool in self._pools.values():
            if pool.adapters.source(name) and not pool.adapters.nowhere(name):
                return Target(pool.name, pool.adapters.base(), name, name)
        return None

    def _unknown_target(self, name: str) -> Target:
        """To a pool that may still serve it: one with a replica whose list nobody has read."""
        pools = [self._pools[self._default], *self._pools.values()]
        open_pool = next((pool for pool in pools if not name or not _is_listed(pool)), None)
        if open_pool is None:
            raise no_such_model(name)
        return Target(open_pool.name, name, "", name)

    def _on_change(self, event: str, replica: Replica) -> None:
        if event != "state":
            self._forget()

    def _forget(self) -> None:
        self._ruled.clear()
        self._targets.clear()
        self._guesses.clear()
        for listener in self._listeners:
            listener()


def no_such_model(name: str) -> RequestError:
    """404 as vLLM answers it."""
    return RequestError(
        404,
        f"The model `{name}` does not exist.",
        kind="NotFoundError",
        param="model",
        code="model_not_found",
    )


def _is_listed(pool: Pool) -> bool:
    """All that the pool serves is known: by its config, or by every replica's own list."""
    if pool.config.models:
        return True
    members = list(pool)
    return bool(members) and all(replica.models is not None for replica in members)


def _base_of(pool: Pool, adapter: str) -> str | None:
    """Base model of an adapter that a replica lists; None when no replica lists it as one."""
    for replica in pool:
        if replica.models is not None and adapter in replica.models.adapters:
            return replica.models.adapters[adapter]
    return None


def _entry(name: str, *, parent: str | None = None, max_model_len: int | None = None) -> JsonObject:
    entry: JsonObject = {"id": name, "object": "model", "created": 0, "owned_by": "warmlane"}
    entry["root"] = name
    entry["parent"] = parent
    entry["max_model_len"] = max_model_len
    return entry
