"""The result of `warmlane audit`: what was heard, put together. Floor 6; no I/O."""

from __future__ import annotations

from typing import Final

import msgspec

from warmlane.router.audit_listen import Ear, Listener, Mark
from warmlane.router.audit_sums import Range, Slice, gpu_hours, share

ADVICE: Final = "start it with --kv-events-config, or name its endpoint with --kv-events"
_LEAST_TOKENS: Final = 16  # computed without an event: fewer may fill no block


class Heard(msgspec.Struct, frozen=True, kw_only=True):
    """One replica. view: whole; partial (what it held before is unknown); silent: nothing came.

    computed: prompt tokens in the audit's time, from its counters, or where it tells none from its
    stored blocks; recomputed: those of them that another replica held.
    """

    replica: str
    view: str
    why: str
    blocks: int
    block_tokens: int
    computed: float
    computed_from: str
    recomputed: float
    sure: float
    metrics: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The result. Shares 0..1 of the computed prompt tokens of heard replicas."""

    seconds: float
    replicas: list[Heard]
    status: int
    duplicated_blocks: int
    duplicated_tokens: int
    duplicated_bytes: float | None
    distinct_blocks: int
    holes: int
    computed: float
    recomputed: float
    recomputed_sure: float
    recomputed_share: float | None
    saving: Range | None
    gpu_hours_a_day: Range | None
    prefill_s_a_token: list[float]
    prefill_from: str
    notes: list[str]


def report(
    listener: Listener,
    first: list[Mark],
    slices: list[Slice],
    *,
    seconds: float,
    gpus: int,
    bytes_per_token: float,
) -> Report:
    """The whole result. first: the marks at the audit's begin."""
    view = listener.view
    last = listener.marks()
    listener.settle()
    replicas = [
        _heard(listener, ear, old, new)
        for ear, old, new in zip(listener.ears, first, last, strict=True)
    ]
    usable = [each for each in replicas if each.view in ("whole", "partial")]
    held = sum(each.blocks for each in replicas)
    copies = max(0, held - view.tree.blocks)
    size = min((each.block_tokens for each in usable if each.block_tokens), default=0)
    computed = sum(each.computed for each in usable)
    recomputed = min(sum(each.recomputed for each in usable), computed)
    sure = min(sum(each.sure for each in usable), computed)
    saving = share(slices) if len(usable) > 1 else None
    paces, source = _paces(first, last, seconds)
    hours = None
    if saving is not None:
        hours = gpu_hours(saving, computed / seconds, paces, gpus)
    notes = _notes(replicas, len(usable), computed, hours)
    return Report(
        seconds=seconds,
        replicas=replicas,
        status=2 if len(usable) < 2 else int(bool(notes)),
        duplicated_blocks=copies,
        duplicated_tokens=copies * size,
        duplicated_bytes=copies * size * bytes_per_token if bytes_per_token else None,
        distinct_blocks=view.tree.blocks,
        holes=view.tree.holes,
        computed=computed,
        recomputed=recomputed,
        recomputed_sure=sure,
        recomputed_share=recomputed / computed if computed else None,
        saving=saving,
        gpu_hours_a_day=hours,
        prefill_s_a_token=paces,
        prefill_from=source,
        notes=notes,
    )


def _heard(listener: Listener, ear: Ear, old: Mark, new: Mark) -> Heard:
    view, slot = listener.view, ear.slot
    grown = new.since(old)
    state, why = ("partial" if ear.why else "whole"), ear.why
    if not new.joined:
        state = "silent"
    elif new.batches == old.batches and new.told and grown.computed >= _LEAST_TOKENS:
        state = "silent"
        why = f"it computed {grown.computed:,.0f} prompt tokens and published no event"
    return Heard(
        replica=ear.replica.name,
        view=state,
        why=why,
        blocks=view.tree.replica_blocks(slot),
        block_tokens=view.intake.block_size(slot),
        computed=grown.computed,
        computed_from="counters" if new.told else "events",
        recomputed=grown.avoidable,
        sure=grown.sure,
        metrics=ear.trouble,
    )


def _paces(first: list[Mark], last: list[Mark], seconds: float) -> tuple[list[float], str]:
    """Prefill seconds a token: in the audit's time, and since the engines began."""
    spent = tokens = life_s = life_tokens = 0.0
    source = ""
    for old, new in zip(first, last, strict=True):
        counters = new.counters
        if counters is None or counters.prefill_s is None or counters.computed is None:
            continue
        source = counters.seconds_from
        life_s += counters.prefill_s
        life_tokens += counters.computed
        # Requests that are prefilled together each count their own time: never more than passed.
        spent += min(seconds, new.prefill_since(old))
        tokens += new.since(old).computed
    paces = [spent / tokens if tokens else 0.0, life_s / life_tokens if life_tokens else 0.0]
    return [pace for pace in paces if pace > 0], source


def _notes(replicas: list[Heard], usable: int, computed: float, hours: Range | None) -> list[str]:
    """What is missing in the result; the reason comes first when there is none."""
    notes = []
    silent = [each for each in replicas if each.view == "silent"]
    if usable < 2:
        why = "; ".join(f"{each.replica}: {each.why or 'no event'}" for each in silent)
        notes.append(f"{usable} of {len(replicas)} replicas publish events ({why}): {ADVICE}")
    elif silent:
        names = ", ".join(f"{each.replica} ({each.why or 'no event'})" for each in silent)
        notes.append(f"not heard, so in no number below: {names}: {ADVICE}")
    partial = [each.replica for each in replicas if each.view == "partial"]
    if partial:
        names = ", ".join(partial)
        notes.append(
            f"what {names} held before is not known, so duplicates and recomputation are "
            "counted too low: give it a replay_endpoint, or listen for longer"
        )
    blind = [f"{each.replica} ({each.metrics})" for each in replicas if each.metrics]
    if blind:
        notes.append(f"counters missing: {', '.join(blind)}")
    if usable > 1 and not computed:
        notes.append("no prompt token was computed meanwhile: listen while there is traffic")
    elif usable > 1 and hours is None:
        notes.append("no engine tells its prefill time: no GPU-hours")
    return notes
