"""What goes into a run of the lab, and what comes out of it. Floor 6: values."""

from __future__ import annotations

import msgspec

from warmlane.router.config_admission import Admission
from warmlane.router.sim.lab_world import Change
from warmlane.router.sim.timing import DEFAULT_PRESET, PRESETS, Timing

FRONT_S = 0.0156  # HTTP and tokenizer before the engine (inference-sim's fit of vLLM)


class LabOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Fleet and pacing.

    fleet: timing of each replica. speeds: factor by which each really is faster, not told to the
    router ([]: 1); decodes: the same of decoding alone. kv_tokens: KV cache of each, 0: the
    preset's. rate: arrivals come that many times faster. view: what the router knows of the caches.
    kv_scale: the router's belief of the cache size over the truth. scrape_s: between two scrapes;
    view_lag_s: by which cache events are late (exact view). tier_tokens: host memory behind each KV
    cache; tier_told: the config of the router says so (of use to the approximate view). zones: of
    the replicas and of the routers, in turn; a session keeps to the routers of one zone, and a
    request to another one is cross_zone_s longer under way. front_s: from the router into an
    engine's queue. routers: that many before one fleet, each request through one of them by chance.
    share_s: time between two messages of one, 0: they know nothing of each other; a message is
    under way for share_lag_s. admission: of the routers. A client that is refused asks again when
    it was told to, for patience_s after it first asked; its times count from there. named: its
    requests carry the session's id.
    """

    fleet: tuple[Timing, ...] = (PRESETS[DEFAULT_PRESET],) * 4
    speeds: tuple[float, ...] = ()
    decodes: tuple[float, ...] = ()
    kv_tokens: int = 0
    rate: float = 1.0
    think_cap_s: float = 120.0
    max_prompt: int = 131_072
    view: str = "approximate"
    kv_scale: float = 1.0
    scrape_s: float = 1.0
    seed: int = 1
    changes: tuple[Change, ...] = ()
    view_lag_s: float = 0.0
    tier_tokens: int = 0
    tier_told: bool = False
    zones: tuple[str, ...] = ()
    cross_zone_s: float = 0.002
    front_s: float = FRONT_S
    routers: int = 1
    share_s: float = 0.05
    share_lag_s: float = 0.002
    admission: Admission = Admission()
    patience_s: float = 3600.0
    named: bool = True


class Done(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One answered request; times in seconds, lengths in tokens. away: in another zone."""

    at: float
    ttft: float
    e2e: float
    prompt: int
    cached: int
    output: int
    predicted: int
    slot: int
    away: bool = False


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What a run brought. zones: there are some. fallbacks: decisions for which the policy's own
    advice failed.
    refused, queued: times that admission said no, or not yet.
    tier_hits: tokens loaded from the slower tier (all requests).
    """

    policy: str
    done: list[Done]
    failed: int
    skipped: int
    fallbacks: int
    busy_s: list[float]
    preemptions: int
    makespan_s: float
    tier_hits: int = 0
    refused: int = 0
    queued: int = 0
    zones: bool = False
