"""GET /admin/v1/adapters: what is loaded where, when it was last used, and what was refused."""

from __future__ import annotations

from warmlane.router.pool import Pool, Replica
from warmlane.router.types import JsonObject


def adapters_of(pool: Pool, now: float) -> JsonObject:
    """One pool: what may be loaded, and each replica's adapters."""
    config = pool.adapters.config
    return {
        "mode": config.mode,
        "sources": config.sources,
        "answer_s": pool.adapters.hold_s,
        "replicas": {replica.name: _replica(pool, replica, now) for replica in pool},
    }


def _replica(pool: Pool, replica: Replica, now: float) -> JsonObject:
    table, slot = pool.adapters, replica.slot
    seat, models = table.seat(slot), replica.models
    listed = frozenset() if models is None else models.adapters.keys()
    return {
        "slots": table.slots(slot),
        "load_s": table.load_s(seat),
        "loads": seat.loads,
        "unloads": seat.unloads,
        "failures": seat.failures,
        "refused_for_s": {name or "*": until - now for name, (until, _) in seat.refused.items()},
        "adapters": {
            name: {
                "state": table.state(slot, name),
                "requests": seat.busy.get(name, 0),
                "last_use_s": now - seat.seen[name] if name in seat.seen else None,
                "loaded_by": "router" if name in seat.ours else "engine",
            }
            for name in sorted(listed | seat.loading.keys() | seat.busy.keys())
        },
    }
