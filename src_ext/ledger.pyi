from array import array
from collections.abc import Sequence

from typing_extensions import Buffer

TICKET_BITS: int
"""A ticket number fits in this many bits; a caller may use the bits above."""
MAX_TICKETS: int

class LedgerFull(BufferError):
    """No free ticket: max_tickets are open. The caller sheds or goes on without a reservation."""

class Ledger:
    """In-flight work per replica slot, given back through tickets.

    slots: 1..65536. max_tickets: 1..2**20-1, 80 bytes each, touched only when used.
    columns: (requests, prefill_tokens, decode_tokens, running) as writable flat buffers of 'i',
        'd', 'd', 'i' items, at least `slots` long: for memory shared between processes. Default:
        fresh arrays. They are changed by atomic adds and stay exported (not resizable).

    Token counts are rounded to whole tokens, so that the columns return to exactly 0. Late,
    repeated and missing events are legal: an event for a ticket that is closed, or a second first
    token, changes nothing and counts in `stale_events`. Every event costs about 0.1 us.
    """

    def __init__(
        self, slots: int = 4096, max_tickets: int = 65536, columns: Sequence[Buffer] | None = None
    ) -> None: ...
    def open(
        self,
        slot: int,
        prefill_tokens: float,
        decode_tokens: float,
        now: float,
        expected_output: float = 0.0,
    ) -> int:
        """Reserves work on `slot`; returns the ticket number (> 0, never reused while open).

        prefill_tokens: prompt tokens that the replica must compute (uncached), held until the first
        token. decode_tokens: context tokens held while the request runs (the prompt), until close.
        expected_output: output tokens charged ahead to the decode column; `progress` adds only what
        goes beyond. now: seconds, caller's clock.
        Raises LedgerFull (counted in `full_events`), IndexError, ValueError (not finite).
        """
    def moved(self, ticket: int, slot: int, prefill_tokens: float) -> bool:
        """The request went to another replica: its work moves there; False when stale."""
    def waited_for(self, ticket: int, now: float) -> tuple[float, float]:
        """(prefill tokens in line at its slot when it was opened, its own too; seconds since).

        (-1, -1) once the first token came, after `moved`, and for a closed ticket; counts nothing.
        """
    def decoded(self, ticket: int, now: float) -> tuple[float, float, float, float] | None:
        """What went on at its replica since its first token; counts nothing.

        (seconds, requests that decoded there, their KV tokens, tokens that were prefilled there
        meanwhile); the two in the middle are means of both ends, the request itself among them.
        None: it is before its first token, was moved, or is closed.
        """
    def first_token(self, ticket: int, now: float) -> float:
        """Prefill is done: gives prefill back, counts as running. Seconds since open, -1: stale."""
    def progress(self, ticket: int, output_tokens: float) -> bool:
        """`output_tokens` so far in all (not the difference), added to the decode column.

        A count below the expected one or the last one changes nothing. False when stale.
        """
    def close(self, ticket: int, now: float) -> tuple[int, float]:
        """Gives everything back. (slot, seconds since open), or (-1, -1.0) when stale."""
    def expire(self, older_than: float, limit: int = 1024) -> list[int]:
        """Closes tickets opened before `older_than` (caller's clock), oldest first, at most limit.

        Returns their numbers; each is a leak of the caller.
        """
    def slot_of(self, ticket: int) -> int:
        """Slot of an open ticket, else -1; counts nothing."""
    @property
    def requests(self) -> array[int]:
        """In-flight requests per slot, 'i'. Live: read it, never write it."""
    @property
    def prefill_tokens(self) -> array[float]:
        """Prompt tokens not yet computed per slot, 'd'."""
    @property
    def decode_tokens(self) -> array[float]:
        """Context tokens of the in-flight requests per slot, 'd'."""
    @property
    def running(self) -> array[int]:
        """Requests past their first token per slot, 'i'."""
    @property
    def slots(self) -> int: ...
    @property
    def max_tickets(self) -> int: ...
    @property
    def open_tickets(self) -> int: ...
    @property
    def stale_events(self) -> int: ...
    @property
    def full_events(self) -> int: ...
    @property
    def expired_tickets(self) -> int: ...
    @property
    def bytes_used(self) -> int:
        """Bytes of the ticket table (reserved; resident only as far as used) and the columns."""
    def check_invariants(self) -> None:
        """Raises AssertionError when the tickets and the columns disagree. O(n), for tests."""

def _fail_alloc_after(n: int) -> None:
    """Test switch: n more allocations of this module succeed, the next one fails; -1: never."""
