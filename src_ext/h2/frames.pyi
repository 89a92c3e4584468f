"""Types of the compiled module; the contract is in frames.pxd, the meaning in frames.pyx."""

from warmlane._core.h2.streams import Shared

class Frames:
    @property
    def shared(self) -> Shared: ...

def _fail_allocation_after(count: int) -> int:
    """Tests only: the allocation after `count` more of libnghttp2's fails once; -1: none.

    What was left of the count before; -1: it had failed.
    """
