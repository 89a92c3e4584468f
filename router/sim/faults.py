"""Fault switches of the fake engine: what real engines and networks do to a router.

Each fault hits the next `count` inference requests (-1: all, until cleared):

  reset        TCP reset before the first byte of an answer
  close        connection closed without a byte (a keep-alive race)
  hang         accepted, never answered
  unavailable  503 with vLLM's error body
  error        500 with vLLM's error body
  abort        200 whose only choice ends with finish_reason "abort" and no token
  cut          TCP reset in the middle of a stream, after `after` events
  error_event  an error event and [DONE] in the middle of a stream, after `after` events

and two that hold for the whole replica for `seconds`:

  refuse       the port is closed
  slow         the engine runs `factor` times slower
"""

from __future__ import annotations

import msgspec

REQUEST_FAULTS = frozenset(
    {"reset", "close", "hang", "unavailable", "error", "abort", "cut", "error_event"}
)
REPLICA_FAULTS = frozenset({"refuse", "slow"})


class Fault(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One switched-on fault; see the module's list."""

    kind: str
    count: int = 1
    after: int = 2
    seconds: float = 1.0
    factor: float = 10.0

    def __post_init__(self) -> None:
        if self.kind not in REQUEST_FAULTS | REPLICA_FAULTS:
            known = ", ".join(sorted(REQUEST_FAULTS | REPLICA_FAULTS))
            raise ValueError(f"unknown fault {self.kind!r}; known: {known}")
        if self.seconds <= 0 or self.factor <= 0:
            raise ValueError("seconds and factor must be above 0")


def parse_fault(text: str) -> Fault:
    """ "kind", "kind:count" or "kind:count:after" -> Fault. ValueError with a clear message."""
    kind, *numbers = text.split(":")
    if len(numbers) > 2:
        raise ValueError(f"a fault is kind[:count[:after]], not {text!r}")
    try:
        count, after = (int(number) for number in [*numbers, *["1", "2"][len(numbers) :]])
    except ValueError:
        raise ValueError(
            f"count and after are whole numbers in kind[:count[:after]]: {text!r}"
        ) from None
    return Fault(kind=kind, count=count, after=after)


class Faults:
    """The faults that wait for requests, in the order in which they were switched on."""

    def __init__(self) -> None:
        self.active: list[Fault] = []
        self.fired: dict[str, int] = {}

    def add(self, fault: Fault) -> None:
        self.active.append(fault)

    def clear(self) -> None:
        self.active.clear()

    def take(self) -> Fault | None:
        """The fault for the inference request that has just come in, None: serve it well."""
        if not self.active:
            return None
        fault = self.active[0]
        if fault.count > 0:
            fault.count -= 1
        if fault.count == 0:
            del self.active[0]
        self.fired[fault.kind] = self.fired.get(fault.kind, 0) + 1
        return fault
