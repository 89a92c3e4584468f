"""Types of the compiled module; contract in proc_course.pxd, meaning in proc_course.pyx."""

from collections.abc import Callable
from typing import Any

from warmlane._core.leads import Picked
from warmlane._core.proc_gate import Gate
from warmlane._core.proc_wire import Received, WireError

class Course:
    """State of a stream, and its common course. What begins with _ is the Python half's."""

    status: tuple[int, str] | None
    _picker: Any
    _out: list[bytes]
    _request_head: Received | None
    _request_mode: int
    _response_mode: int
    _phase: int
    _chunks: list[bytes]
    _held: int
    _trailers: bool
    _observed: bool
    _internal: list[bytes] | None
    _wake: Callable[[], None] | None
    _waiting: Any
    _late: Any
    _kind: Any
    _stream: bool
    _open: bool
    _decision: Any
    _slot: int
    _way: Any
    _ways: Any
    _beside: Any
    _answer: Any
    _asked: Any
    _rename: Any
    _http_status: int
    _answered_at: float
    _reads: int
    def __init__(self, picker: Gate, wake: Callable[[], None]) -> None: ...
    @property
    def held_bytes(self) -> int:
        """Of the request's body, kept until the choice: what a transport charges the stream for."""
    def receive(self, message: bytes) -> None:
        """One whole message of the gateway's."""
    def take(self) -> list[bytes]:
        """Messages to send now."""
    def half_closed(self) -> None:
        """Nothing more will come: the stream ends, and with it what is open."""
    def closed(self) -> None:
        """The stream is gone."""
    def _let_go(self) -> None:
        """Forget the held body."""
    def _whole(self) -> bytes:
        """The held body. A gateway may end it with an empty chunk: the one before is no copy."""
    def _left_early(self) -> bool:
        """Did the gateway end the stream though the answer goes on?"""
    def _receive(self, part: Received) -> None:
        """A message that is not of the common course."""
    def _choose_whole(self) -> None:
        """The body is whole, and the choice not for the compiled course."""
    def _unreadable(self, error: WireError) -> None:
        """The gateway sent what is no message."""
    def _crashed(self) -> None:
        """An exception where none should be, now being handled."""
    def _adopt(self, picked: Picked, kind: int) -> None:
        """Go on with a request that the compiled course decided."""
    def _predict_end(self) -> None:
        """Nobody will see the end of the open ticket."""
    def _ended(self) -> None:
        """The open ticket's end."""
