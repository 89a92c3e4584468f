from typing import final

from typing_extensions import Buffer

@final
class Journal:
    """Chains of block keys and charges, as they were booked; read by other routers.

    max_bytes: bound of what waits for `take`. A record is 8 bytes and 8 for each key. Raises
    ValueError below 8.
    """

    dropped: int
    """Records that found no room (or were empty or out of range), since the start."""

    def __init__(self, max_bytes: int) -> None: ...
    def chain(self, slot: int, tokens: bool, keys: Buffer) -> bool:
        """A prompt was sent to the slot. tokens: its blocks are of token ids. False: dropped.

        keys: contiguous uint64; TypeError for another buffer.
        """
    def charge(self, slot: int, tokens: bool, count: int) -> bool:
        """So many generated tokens of unknown text fill the slot's cache. False: dropped."""
    def take(self) -> bytes:
        """All records in order, native-endian words (journal.pxd); the journal is empty then."""
    def __len__(self) -> int:
        """Bytes that wait."""

def _fail_allocation_after(count: int) -> None: ...
