"""What counts as a failed attempt, and where the request goes next. Floor 3: no I/O, no clock.

Owns: the classes of failure (`Fault`), which of them count against a replica, the order in which
the choices of one decision are tried and what comes behind them, and the retry budget of a pool. A
face asks `Attempts.next` only while the client has not seen a byte; nothing here can know that.

The budget exists because retries multiply load exactly when there is too much of it (Google SRE
book, chapter 22): retries may be at most a share of recent requests, plus a small floor so that a
quiet router can still retry. What moves because its replica is gone adds no load: a connection that
was refused is free, and so are the others that were open on a replica when it broke a connection:
the one may be to blame, they are not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Final

from warmlane._core.upkeep import Tally
from warmlane.router.config import Retry
from warmlane.router.types import Rest


class Fault(StrEnum):
    """Why an attempt failed. The value is the `reason` label of the retry metric."""

    CONNECT = "connect"  # refused, unreachable, TLS failure, connect time-out
    RESET = "reset"  # closed or cut before the answer was complete
    TIMEOUT = "timeout"  # no answer byte in time, or silence inside the answer
    PROTOCOL = "protocol"  # the answer is not HTTP
    GATEWAY = "gateway"  # 502, 504, or a 503 that some gateway made up
    DEAD = "dead"  # 500 of an engine that says its core is gone: vLLM's EngineDeadError
    SERVER = "server"  # another 5xx of the engine: never retried, the request may be the cause
    BACKPRESSURE = "backpressure"  # 429, or the engine's own 503: full, not ill
    ABORTED = "aborted"  # 200 with finish_reason "abort" and no token: a draining engine
    MISSING = "missing"  # this replica lacks the model or adapter, and could not load it
    ERROR_EVENT = "error_event"  # an error inside a 200 stream before any token


COUNTED: Final = frozenset(Fault) - {Fault.BACKPRESSURE, Fault.MISSING}
RETRYABLE: Final = frozenset(Fault) - {Fault.SERVER}
# No engine has worked on it, or only refused the name: that is no load worth a budget.
FREE: Final = frozenset({Fault.CONNECT, Fault.MISSING})
# What the loss of a whole zone looks like to a request; of so many replicas of one zone, and it
# looks elsewhere. One alone is more likely to be ill by itself.
LOST: Final = frozenset({Fault.CONNECT, Fault.RESET, Fault.TIMEOUT})
_LOST_ENOUGH: Final = 2
# Connections that could not be made and count as no try: much of a fleet may be gone at once, and
# what is gone looks idle. Each takes connect_s at most.
MAX_UNREACHED: Final = 8
_NO_ZONES: Final[frozenset[str]] = frozenset()
# Statuses whose body must be seen before they can be judged or retried.
SUSPECT: Final = frozenset({429, 502, 503, 504})
# A 500 is the request's fault, or the last word of a dying engine; a 404 the path's, or this
# replica lacks what another has.
HELD: Final = SUSPECT | {404, 500}


def classify(status: int, openai_error: bool) -> Fault | None:
    """The fault that a whole answer with this status is, None if it is an answer.

    openai_error: the body is an OpenAI-shaped error object. vLLM refuses with 503 and such a body
    when its admission limits are reached (`--max-num-queued-reqs`); gateways send their own pages.
    """
    if status < 429:
        return None
    if status == 429 or (status == 503 and openai_error):
        return Fault.BACKPRESSURE
    if status in (502, 503, 504):
        return Fault.GATEWAY
    return Fault.SERVER if status >= 500 else None


class RetryBudget(Tally):
    """Retries of one pool: at most `ratio` of the requests of the last window, plus `minimum`.

    The window slides over two buckets; `request` is the base's one addition. Cost: constant.
    """

    __slots__ = (
        *("_before", "_broken", "_minimum", "_ratio", "_retries", "_start"),
        "_window",
    )

    def __init__(self, settings: Retry, now: float) -> None:
        self.follow(settings)
        self._requests = 0
        self._retries = 0
        self._before = (0, 0)  # requests and retries of the bucket before
        self._start = now
        self._broken: dict[int, tuple[float, int]] = {}  # slot: until when, moves left

    def follow(self, settings: Retry) -> None:
        """Other settings from now on."""
        self._ratio = settings.budget_ratio
        self._minimum = settings.budget_min
        self._window = settings.budget_window_s

    def roll(self, now: float) -> None:
        """Move the window on. Call it at least once per window, or old requests count longer."""
        passed = now - self._start
        if passed < self._window:
            return
        self._before = (self._requests, self._retries) if passed < 2 * self._window else (0, 0)
        self._requests = self._retries = 0
        self._start = now

    def broke(self, slot: int, requests: int, now: float) -> None:
        """A replica with so many open requests broke a connection: all but one may move, once.

        Again after a window at the earliest: a replica that breaks time and again has no more.
        """
        until, _ = self._broken.get(slot, (now, 0))
        if now >= until:
            self._broken[slot] = (now + self._window, requests - 1)

    def take(self, now: float, slot: int = -1) -> bool:
        """Spend one retry; False when there is none left. slot: the one that failed."""
        until, moves = self._broken.get(slot, (now, 0))
        if moves > 0 and now < until:
            self._broken[slot] = (until, moves - 1)
            return True
        self.roll(now)
        old = 1.0 - (now - self._start) / self._window
        requests = self._requests + old * self._before[0]
        retries = self._retries + old * self._before[1]
        if retries + 1 > self._minimum + self._ratio * requests:
            return False
        self._retries += 1
        return True


def _nowhere(slot: int) -> str:
    del slot
    return ""


class Attempts:
    """The tries of one request. Made at its first fault; the common request never needs one.

    zone_of: slot -> zone, "" where none is known.
    """

    __slots__ = (
        *("_budget", "_choices", "_last", "_left", "_lost", "_tried", "_unreached"),
        "_zone_of",
    )

    def __init__(
        self,
        choices: Sequence[int],
        budget: RetryBudget,
        limit: int,
        zone_of: Callable[[int], str] = _nowhere,
    ) -> None:
        self._choices = choices
        self._budget = budget
        self._left = limit - 1
        self._unreached = MAX_UNREACHED if limit > 1 else 0
        self._last = choices[0]
        self._tried = {self._last}
        self._zone_of = zone_of
        self._lost: list[str] = []  # zones of the tries that failed as if all of it were gone

    @property
    def tried(self) -> int:
        """Slots that were given out, the first choice included."""
        return len(self._tried)

    def was_tried(self, slot: int) -> bool:
        """Whether it was given out."""
        return slot in self._tried

    def next(
        self,
        fault: Fault,
        now: float,
        is_ready: Callable[[int], bool],
        rest: Callable[[Rest], Sequence[int]],
    ) -> int:
        """Slot of the next try, or -1: not retryable, nobody, no try or no budget left.

        The ready choices first, in their order. When there is none left, `rest` names whom else the
        pool has for this request, best first: an ejected replica may be well again, and is better
        asked than not. Not when this one was only full: then what is ill or starting would turn a
        quick refusal with its Retry-After into a slow failure.

        A zone of which two replicas were lost to this request is avoided while another zone, or one
        that is not known, has a ready replica.
        """
        if fault is Fault.CONNECT and self._unreached:
            self._unreached -= 1
            self._left += 1
        if fault not in RETRYABLE or self._left < 1:
            return -1
        avoid = self._avoided(fault)
        tried, zone_of = self._tried, self._zone_of
        slots = [each for each in self._choices if each not in tried and is_ready(each)]
        good = [each for each in slots if zone_of(each) not in avoid] if avoid else slots
        if not good:
            wanted = Rest(fault is Fault.BACKPRESSURE, avoid, frozenset(tried))
            others = [each for each in rest(wanted) if each not in tried]
            good = [each for each in others if is_ready(each) and zone_of(each) not in avoid]
            good += slots + others
        if not good or (fault not in FREE and not self._budget.take(now, self._last)):
            return -1
        self._left -= 1
        self._last = slot = good[0]
        tried.add(slot)
        return slot

    def _avoided(self, fault: Fault) -> frozenset[str]:
        zone = self._zone_of(self._last)
        if zone and fault in LOST:
            self._lost.append(zone)
        lost = self._lost
        if len(lost) < _LOST_ENOUGH:
            return _NO_ZONES
        return frozenset(each for each in lost if lost.count(each) >= _LOST_ENOUGH)
