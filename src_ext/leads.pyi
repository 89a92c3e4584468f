"""Types of the compiled module; the contract is in leads.pxd, the meaning in leads.pyx."""

from typing import Any

from warmlane._core.desk import Lead
from warmlane._core.hashing import KeyArray

class Leads:
    """Where model names lead, a scratch for scans and a source of chance."""

    paths: dict[str, int]
    shadow: Any
    def sow(self, seed: int) -> None:
        """Begin the random numbers anew."""
    def forget_leads(self) -> None:
        """A pool has changed: names lead elsewhere."""
    def lead(self, name: bytes) -> Lead | None:
        """The Lead of a model name, None: it needs the Python half. The owner's."""

class Picked:
    """A decided request, for the Python half that goes on with it. sent: to the first choice."""

    lead: Lead
    ticket: int
    choices: tuple[int, ...]
    hit_tokens: tuple[int, ...]
    prompt_tokens: int
    raw_hit: float
    prompt_size: int
    root: int
    keys: KeyArray
    sent: bool

def _fail_allocation_after(count: int) -> None:
    """Tests only: the allocation after `count` more of this module fails once."""
