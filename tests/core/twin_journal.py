"""The twin of `_core.journal`: records as tuples, and their words."""

from __future__ import annotations

from array import array

Record = tuple[int, int, int, list[int]]


class TwinJournal:
    """Same face as `Journal`."""

    def __init__(self, max_bytes: int) -> None:
        self.words = max_bytes // 8
        self.records: list[Record] = []
        self.dropped = 0

    def chain(self, slot: int, tokens: bool, keys: list[int]) -> bool:
        return self._note((slot, int(tokens), len(keys), keys))

    def charge(self, slot: int, tokens: bool, count: int) -> bool:
        return self._note((slot, 2 + tokens, count, []))

    def take(self) -> bytes:
        words = array("Q")
        for slot, what, count, keys in self.records:
            words.append(slot + (what << 16) + (count << 32))
            words.extend(keys)
        self.records.clear()
        return words.tobytes()

    def __len__(self) -> int:
        return 8 * sum(1 + len(record[3]) for record in self.records)

    def _note(self, record: Record) -> bool:
        size = len(self) // 8 + 1 + len(record[3])
        if size > self.words or record[0] >= 2**16 or not 1 <= record[2] < 2**32:
            self.dropped += 1
            return False
        self.records.append(record)
        return True
