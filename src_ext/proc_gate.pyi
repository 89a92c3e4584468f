"""Types of the compiled module; contract in proc_gate.pxd, meaning in proc_gate.pyx."""

from typing import Any

from warmlane._core.expected import Expected
from warmlane._core.leads import Leads

class Link:
    """One replica as a stream tells of it. mutation: further fields of a HeaderMutation."""

    endpoint: bytes
    address: str
    mutation: bytes
    expected: Expected
    def __init__(self, endpoint: bytes, mutation: bytes, expected: Expected) -> None: ...

class Gate(Leads):
    """What all streams of one endpoint picker share. Sizes in bytes."""

    plain: bool  # courses are allowed
    level: int
    body_mode: int
    unknown_kind: Any
    wanted: tuple[bytes, ...] | None  # names of headers that are kept besides
    body_bytes: int
    buffered_most: int
    buffered: int  # of bodies held by all streams
    open: int  # streams
    ends: dict[tuple[str, ...], int]
    plain_requests: int  # decided by a course
    handed_on: int  # of these, those that the Python half went on with
    def _failed(self, side: Any, slot: int) -> None:
        """A client got 5xx for a request that went there. side: what its Lead keeps of the pool."""

def _fail_allocation_after(count: int) -> None:
    """Tests only: the allocation after `count` more of this module fails once."""
