"""Types of the compiled module; the contract is in frames.pxd, the meaning in frames.pyx."""

from warmlane._core.h2.streams import Shared

class Frames:
    @property
    def shared(self) -> Shared: ...
