"""Types of the compiled module; the contract is in straight.pxd, the meaning in straight.pyx."""

from typing import Any

from warmlane._core.chunks import ChunkReader
from warmlane._core.desk import Lead
from warmlane._core.hop import Course, Front, Shared
from warmlane._core.http_head import RequestHead, ResponseHead
from warmlane._core.leads import Picked
from warmlane._core.sse import AnswerScan

class Straight(Course):
    """The course of one client's plain requests; what is readable is for the exchange after it."""

    front: Front
    back: Any
    lead: Lead
    link: Any
    head: RequestHead
    kind: int
    decision_s: float
    total: float
    response: ResponseHead
    chunks: ChunkReader
    scan: AnswerScan
    held: bytes
    begun: bool
    close: bool
    reads: int
    body: bytes
    picked: Picked
    def __init__(self, shared: Shared) -> None: ...
    def leave(self) -> Any:
        """The exchange that goes on instead, with all that was held read."""
    def expired(self, now: float) -> None:
        """A time-out of this request."""
    def cancel(self) -> None:
        """The client is gone, or the proxy stops."""
    def pause(self) -> None:
        """The client reads slower than the replica writes."""
    def resume(self) -> None:
        """The opposite."""
