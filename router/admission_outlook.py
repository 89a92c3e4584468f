"""Would admission let this request go, keep it, or refuse it, and by which figures? Floor 4.

What `explain` shows of a gate. Asks what `Gate.offer` asks, keeps nothing and changes nothing that
a later decision looks at. A tenant is told by what it has, never by its name.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from warmlane.router.admission import Gate
from warmlane.router.admission_line import Waiting
from warmlane.router.lane import Prepared


class Outlook(msgspec.Struct, frozen=True, kw_only=True):
    """What would become of one request now, and why.

    result, reason: `go` for `below_saturation` (requests are not looked at), `room`, or
    `nobody_ready` (at once to the last resort, or 503); `wait` for `room` in a replica, `memory`
    for its session, `others_first` (there is room, others came before) or `nobody_ready`; `refuse`
    with the `code` of the error. position: its place among those who wait, about: as many of each
    other tenant as of its own go before it, by weight; 0: it goes at once. expected_wait_s: that
    place over the pace of late, None while nothing moves; longest_wait_s: by config and deadline.
    in_time: whether the first is within the second.

    level: 0 is normal, higher goes later. tenant_*: requests of its tenant that wait, what is left
    of the tenant's turn in tokens (deficit), its weight. new_tokens: of its prompt beyond what its
    session had. opens_session: it continues none that is known. live_tokens: KV tokens that live
    sessions hold or will want again; wanted_tokens: with this one; allowed_tokens: of all caches,
    by `working_set`, 0 where nobody tells; holds_sessions: whether that is held against sessions
    that begin; idle: fewer requests are under way than replicas are ready, which lets one begin all
    the same; lost_share: of continued contexts, not found in any cache of late.
    """

    result: Literal["go", "wait", "refuse"]
    reason: str
    code: str = ""
    position: int = 0
    waiting: int
    expected_wait_s: float | None = None
    longest_wait_s: float | None = None
    in_time: bool = True
    replicas_ready: int
    replicas_with_room: int
    level: int
    tenant_waiting: int
    tenant_deficit: float
    tenant_weight: float
    new_tokens: float
    opens_session: bool
    live_tokens: float
    wanted_tokens: float
    allowed_tokens: float
    holds_sessions: bool
    idle: bool
    lost_share: float


def outlook(prepared: Prepared, now: float) -> Outlook | None:
    """What the gate of its pool would do with this request now. None: admission is off."""
    gate = prepared.lane.gate
    if gate is None or not gate.config.enabled:
        return None
    request, load, queue, sessions = prepared.request, gate.load, gate.queue, gate.sessions
    session = sessions.find(request.session, prepared.key)
    prompt = gate.lane.view.lengths(prepared.key)[0]
    context = 0.0 if session is None else session.context
    work = max(0.0, prompt - context)
    item = Waiting(gate, request.tenant, request.priority, session is None, now, work)
    item.prepared, item.size = prepared, 0
    result, reason = _fate(gate, item, now)
    waits = result == "wait"
    longest_s = _longest_s(gate, item) if waits else None
    position = queue.place(item) if waits else 0
    expected_s = position / gate.pace if waits and gate.pace > 0.0 else None
    late = longest_s is not None and (longest_s <= 0.0 or (expected_s or 0.0) > longest_s)
    account = queue.accounts.get(request.tenant)
    ready = [slot for slot, on in enumerate(gate.lane.pool.ready) if on]
    return Outlook(
        result=result,
        reason=reason,
        code=gate.code(reason) if result == "refuse" else "",
        position=position,
        waiting=len(queue),
        expected_wait_s=expected_s,
        longest_wait_s=longest_s,
        in_time=not late,
        replicas_ready=len(ready),
        replicas_with_room=sum(load.has_room(slot) for slot in ready),
        level=request.priority,
        tenant_waiting=0 if account is None else account.waiting,
        tenant_deficit=0.0 if account is None else account.deficit,
        tenant_weight=queue.weight(request.tenant),
        new_tokens=work,
        opens_session=session is None,
        live_tokens=sessions.tokens,
        wanted_tokens=sessions.tokens + (prompt if session is None else 0.0),
        allowed_tokens=gate.config.working_set * gate.capacity_tokens,
        holds_sessions=gate.holds_sessions,
        idle=load.idle(),
        lost_share=sessions.lost_share,
    )


def _fate(gate: Gate, item: Waiting, now: float) -> tuple[Literal["go", "wait", "refuse"], str]:
    """As `Gate.offer` decides it, for a caller that can wait."""
    if not gate.active:
        return "go", "below_saturation"
    if not gate.load.has_any():
        if not gate.config.room_s:
            return "go", "nobody_ready"
        reason = "nobody_ready"
    elif gate.may_go(item, now):
        return "go", "room"
    elif gate.config.shed_negative and item.level > 0:
        return "refuse", "sheddable"
    elif item.fresh and not gate.fits(item, now):
        reason = "memory"
    else:
        reason = "others_first" if gate.load.room() else "room"
    return ("refuse", "full") if gate.queue.limit(item) else ("wait", reason)


def _longest_s(gate: Gate, item: Waiting) -> float:
    config, own = gate.config, item.prepared.request.wait_s
    longest = config.wait_s if gate.load.has_any() else config.room_s
    return longest if own is None else min(longest, own)
