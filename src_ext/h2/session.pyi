"""Types of the compiled module; the contract is in session.pxd, the meaning in session.pyx."""

from warmlane._core.h2.frames import Frames

class Session(Frames): ...
