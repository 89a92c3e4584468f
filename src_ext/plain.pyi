"""Types of the compiled module; the contract is in plain.pxd."""

from warmlane._core.hashing import KeyArray

def keys_of(
    body: bytes, kind: int, root: int, block: int = 128
) -> tuple[bytes, KeyArray, bytes, bool, bool, int] | None: ...
def _fail_allocation_after(count: int) -> None: ...
