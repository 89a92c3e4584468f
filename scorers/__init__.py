"""Scorers: how good is each replica for this request, 0 to 1. One file and one line here each.

`BUILTIN` maps the name in a config to `module:Class`; `DEFAULT_MIX` is the mix of policy
"default" (docs/policies.md says why), `WEIGHTED_MIX` that of "weighted". Scorers never import each
other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

BUILTIN: Final[Mapping[str, str]] = {
    "price": "warmlane.scorers.price:PriceScorer",
    "prefix_hit": "warmlane.scorers.prefix_hit:PrefixHit",
    "inflight_tokens": "warmlane.scorers.inflight_tokens:InflightTokens",
    "running_requests": "warmlane.scorers.running_requests:RunningRequests",
    "spread": "warmlane.scorers.spread:Spread",
    "least_requests": "warmlane.scorers.least_requests:LeastRequests",
    "queue_depth": "warmlane.scorers.queue_depth:QueueDepth",
    "kv_usage": "warmlane.scorers.kv_usage:KvUsage",
    "lora": "warmlane.scorers.lora:LoraResidency",
    "session": "warmlane.scorers.session:SessionAffinity",
    "zone": "warmlane.scorers.zone:Zone",
}

DEFAULT_MIX: Final[tuple[str | dict[str, Any], ...]] = ({"name": "price", "weight": 1.0},)
# Policy "weighted": ratios on a shared scale, for those who want to set weights.
WEIGHTED_MIX: Final[tuple[str | dict[str, Any], ...]] = (
    {"name": "prefix_hit", "weight": 2.0},
    {"name": "inflight_tokens", "weight": 1.0},
    {"name": "running_requests", "weight": 1.0},
    {"name": "spread", "weight": 1.0},
    {"name": "kv_usage", "weight": 0.02},
    {"name": "lora", "weight": 0.5},
)
