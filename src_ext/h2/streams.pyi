"""Types of the compiled module; the contract is in streams.pxd, the meaning in streams.pyx."""

from typing import Protocol

class _Owner(Protocol):
    def _wake(self, stream: Stream) -> None: ...

class Shared:
    held_bytes: int
    peak_held_bytes: int
    open_streams: int
    open_connections: int
    def __init__(
        self,
        *,
        message_bytes: int,
        stream_bytes: int,
        held_limit_bytes: int,
        header_bytes: int,
        streams_per_connection: int,
        streams: int,
        connections: int,
        stream_window_bytes: int,
        connection_window_bytes: int,
        keepalive_s: float,
        keepalive_timeout_s: float,
        stall_s: float,
        resets_burst: float,
        resets_per_s: float,
        control_burst: float,
        control_per_s: float,
    ) -> None: ...
    def stats(self) -> dict[str, float]: ...

class Stream:
    def __init__(self, shared: Shared, owner: _Owner | None, number: int) -> None: ...
    @property
    def id(self) -> int: ...
    def __call__(self) -> None: ...
    def feed_bytes(self, data: bytes) -> tuple[list[bytes], int]: ...

def percent_encode(text: str) -> bytes: ...
