"""Types of the compiled module; the contract is in upkeep.pxd, the meaning in upkeep.pyx."""

from array import array

class Placements:
    """What was sent to each replica of a pool, and until when its loads are believed."""

    placed_tokens: array[float]
    mean_uncached_tokens: float
    _fresh_until: float
    def freshen(self, now: float) -> None:
        """Make the load columns believable at `now`; one comparison when nothing went stale."""
    def placed(self, slot: int, uncached_tokens: float) -> None:
        """Work was sent there: it fills the cache, and shows how large a typical request is."""
    def _expire_loads(self, now: float) -> None:
        """Some load is stale; the owner's."""

class Tally:
    """Requests of a pool, for what is a share of them."""

    _requests: int
    def request(self) -> None:
        """Count one request (not its retries)."""

class Record:
    """What is known of one slot's answers."""

    ok: int
    failed: int
    ok_before: int
    failed_before: int
    row: int
    times: int
    trial: int
    until: float

class Records:
    """The answers of a pool's replicas, good and bad, by slot."""

    _records: dict[int, Record]
    def ok(self, slot: int) -> None:
        """A replica answered."""
    def _record(self, slot: int) -> Record:
        """Of this slot, a new one where there is none."""
