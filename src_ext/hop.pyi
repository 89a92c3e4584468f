"""Types of the compiled module; the contract is in hop.pxd, the meaning in hop.pyx."""

from collections.abc import Callable, Mapping
from typing import Any

from warmlane._core.leads import Leads
from warmlane._core.poll import Peer

class Shared(Leads):
    """What all connections of one proxy share. Seconds and bytes."""

    now: float
    inflight: int
    buffered_bytes: int
    draining: bool
    plain: bool
    most_inflight: int
    most_buffered: int
    most_head: int
    most_body: int
    most_text: int
    most_held: int
    head_s: float
    keepalive_s: float
    first_byte_s: float
    idle_s: float
    total_s: float
    hold_s: float
    plain_requests: int  # begun by a course
    handed_on: int  # of these, those that an exchange went on with
    guard: Callable[[Mapping[bytes, bytes]], bool] | None
    def adopt(self, course: Any) -> Any:
        """Make the exchange that goes on with a course. The owner's."""

class Course:
    """One plain request under way."""

    deadline: float
    def leave(self) -> Any:
        """The exchange that goes on instead."""

class Front(Peer):
    """The reading half of a client's connection."""

    exchange: Any
    transport: Any
    _body: Any
    _tail: bytes
    deadline: float
    closing: bool
    stalled: bool
    debug: bool
    _pumping: bool
    _waiting: bool
    _paused: bool
    _ended: bool
    partial: bool
    def equip(self, shared: Shared, course: Course | None) -> None:
        """What it works with. course: None, all requests go to the Python half."""
    def forget_partial(self) -> None:
        """The request in the buffer will not be answered any more."""
    def _next(self, close: bool = False) -> None:
        """Ready for the next request, or close. The owner's."""

class Back(Peer):
    """The reading half of a connection to a replica."""

    course: Course | None
    idle_since: float
    usable: bool
    _keep: bool
    _silent: bool
    _used: bool
    _sent_all: bool

class Kept:
    """Connections to one replica between two requests."""

    idle: list[Any]  # the one used last at the end
    closed: bool
    _keepalive_s: float
    _max_idle: int
    host_line: bytes
    extra: bytes
    def take(self, now: float) -> Any:
        """The idle connection used last, if it is young enough, None."""
    def give(self, connection: Back, now: float) -> None:
        """Back after a clean end."""

def _fail_allocation_after(count: int) -> None:
    """Tests only: the allocation after `count` more of this module fails once."""
