"""Chained 64-bit block keys. See hashing.pxd for the contract and docs/hashing.md for the reasons.

Cost: 6 ns for a 16-token block, 7 ns for a 128-byte text block, plus about 100 ns for the call. No
Python object is touched per block; the GIL stays held (a 1 MB prompt: 60 us).
"""
cimport cython
from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy


cdef extern from "Python.h":
    bint PyUnicode_IS_COMPACT_ASCII(object text)
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL


cdef extern from "alloc.h" nogil:
    void *wl_malloc(size_t size_bytes)
    void wl_free(void *block)
    void wl_alloc_fail_after(long n)


cdef char *KEY_FORMAT = b"Q"
BLOCK_BYTES = 128  # the default; docs/hashing.md says how it was chosen
# Parent key + block stay on XXH3's short-input path (240 bytes) up to this size.
MAX_BLOCK_BYTES = 232


@cython.final
cdef class KeyArray:
    """The keys of a chain of blocks, first block first: an immutable buffer of uint64 ('Q').

    Made by the functions of this module, never directly.
    """

    def __cinit__(self):
        self.keys = NULL
        self.size = 0

    def __init__(self):
        raise TypeError("a KeyArray is made by token_keys or text_keys")

    def __dealloc__(self):
        if self.owner is None:
            wl_free(self.keys)

    def __len__(self):
        return self.size

    def __getitem__(self, Py_ssize_t index):
        if index < 0:
            index += self.size
        if not 0 <= index < self.size:
            raise IndexError("KeyArray index out of range")
        return self.keys[index]

    def __eq__(self, other):
        if not isinstance(other, KeyArray):
            return NotImplemented
        return self.tobytes() == (<KeyArray>other).tobytes()

    __hash__ = None

    def head(self, Py_ssize_t count):
        """The first `count` keys (all if there are fewer), sharing this array's memory."""
        cdef KeyArray part = KeyArray.__new__(KeyArray)
        part.owner = self if self.owner is None else self.owner
        part.keys = self.keys
        part.size = min(max(count, 0), self.size)
        return part

    def tobytes(self):
        """The keys as native-endian bytes, 8 per key."""
        return PyBytes_FromStringAndSize(<char *>self.keys, self.size * 8)

    def __reduce__(self):
        raise TypeError("a KeyArray is not pickled: hash the prompt again")

    def __getbuffer__(self, Py_buffer *view, int flags):
        if flags & PyBUF_WRITABLE:
            raise BufferError("a KeyArray is read-only")
        self.shape[0] = self.size
        self.strides[0] = 8
        view.buf = self.keys
        view.obj = self
        view.len = self.size * 8
        view.readonly = 1
        view.itemsize = 8
        view.format = KEY_FORMAT if flags & PyBUF_FORMAT else NULL
        view.ndim = 1
        view.shape = self.shape
        view.strides = self.strides
        view.suboffsets = NULL
        view.internal = NULL


cdef KeyArray new_keys(Py_ssize_t size):
    cdef KeyArray made = KeyArray.__new__(KeyArray)
    made.keys = <uint64_t *>wl_malloc(<size_t>size * 8)
    if made.keys == NULL:
        raise MemoryError("no memory for block keys")
    made.size = size
    return made


cdef inline void hash_chain(
    uint64_t parent, const uint8_t *data, Py_ssize_t block, Py_ssize_t count, uint64_t *keys
) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(count):
        parent = wl_block_key(parent, data + i * block, <size_t>block)
        keys[i] = parent


cdef KeyArray chain(
    KeyArray before, uint64_t root, Py_buffer *carry, Py_buffer *data, Py_ssize_t block
):
    # `before` (may be None), then the full blocks of carry + data. carry is shorter than a block.
    cdef Py_ssize_t old = 0 if before is None else before.size
    cdef Py_ssize_t held = 0 if carry == NULL else carry.len
    cdef Py_ssize_t count = (held + data.len) // block
    cdef Py_ssize_t used = 0
    cdef uint64_t parent = root
    cdef uint8_t *joined
    cdef KeyArray made
    if count == 0 and before is not None:
        return before
    made = new_keys(old + count)
    if old:
        memcpy(made.keys, before.keys, <size_t>old * 8)
        parent = before.keys[old - 1]
    if held and count:
        used = block - held
        joined = <uint8_t *>wl_malloc(<size_t>block)
        if joined == NULL:
            raise MemoryError("no memory for a block")
        memcpy(joined, carry.buf, <size_t>held)
        memcpy(joined + held, data.buf, <size_t>used)
        hash_chain(parent, joined, block, 1, made.keys + old)
        wl_free(joined)
        parent = made.keys[old]
        old += 1
        count -= 1
    hash_chain(parent, <const uint8_t *>data.buf + used, block, count, made.keys + old)
    return made


cdef KeyArray chain_of(KeyArray before, uint64_t root, carry, data, Py_ssize_t block, bint tokens):
    cdef Py_buffer held
    cdef Py_buffer view
    cdef int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT
    if root == 0:
        raise ValueError("root is 0: use root_key")
    PyObject_GetBuffer(data, &view, flags)
    try:
        check_items(&view, tokens)
        if carry is None:
            return chain(before, root, NULL, &view, block)
        PyObject_GetBuffer(carry, &held, flags)
        try:
            check_items(&held, tokens)
            if held.len >= block:
                raise ValueError("carry is a full block or more")
            return chain(before, root, &held, &view, block)
        finally:
            PyBuffer_Release(&held)
    finally:
        PyBuffer_Release(&view)


cdef int check_items(Py_buffer *view, bint tokens) except -1:
    cdef char kind = view.format[0] if view.format != NULL else b"B"
    if kind == b"@" or kind == b"=" or kind == b"<":
        kind = view.format[1]
    if view.itemsize == 1 and kind in (b"B", b"b", b"c"):
        if tokens and view.len % 4:
            raise ValueError("bytes of token ids must be a multiple of 4 long (uint32)")
        return 0
    if tokens and view.itemsize == 4 and kind in (b"I", b"i", b"L", b"l"):
        return 0
    raise TypeError("need bytes or a buffer of uint32" if tokens else "need a buffer of bytes")


cdef Py_ssize_t token_block(Py_ssize_t block_size) except -1:
    if not 1 <= block_size <= 65536:
        raise ValueError(f"block_size is {block_size}, must be 1 to 65536 tokens")
    return block_size * 4


cdef Py_ssize_t text_block(Py_ssize_t block_bytes) except -1:
    if not 1 <= block_bytes <= 232:
        raise ValueError(f"block_bytes is {block_bytes}, must be 1 to {MAX_BLOCK_BYTES}")
    return block_bytes


cdef uint64_t part_key(uint64_t parent, str part) except 0:
    cdef Py_ssize_t size
    cdef const char *raw
    cdef bytes encoded
    if PyUnicode_IS_COMPACT_ASCII(part):
        raw = PyUnicode_AsUTF8AndSize(part, &size)
        return wl_block_key(parent, <const uint8_t *>raw, <size_t>size)
    # JSON may carry lone surrogates ("\\ud800"); they have no strict UTF-8 form.
    encoded = part.encode("utf-8", "surrogatepass")
    return wl_block_key(parent, <const uint8_t *><char *>encoded, <size_t>len(encoded))


def root_key(str model not None, str adapter not None="", str salt not None=""):
    """The parent of every first block: a function of model, LoRA adapter and cache salt.

    A chain of three: the key of the model's UTF-8 bytes after parent 0, of the adapter's after
    that, of the salt's after that. Each step covers the length of its part, so no two triples can
    run into each other. Never 0.
    """
    return part_key(part_key(part_key(0, model), adapter), salt)


def token_keys(uint64_t root, tokens, Py_ssize_t block_size):
    """Keys of the full blocks of token ids: a uint32 buffer, or its native-endian bytes.

    block_size: tokens a block, 1 to 65536 (above 58 on XXH3's long path, same definition).
    """
    return chain_of(None, root, None, tokens, token_block(block_size), True)


def text_keys(uint64_t root, text, Py_ssize_t block_bytes=BLOCK_BYTES):
    """Keys of the full blocks of canonical prompt bytes. block_bytes: 1 to 232."""
    return chain_of(None, root, None, text, text_block(block_bytes), False)


def token_keys_extend(KeyArray keys not None, uint64_t root, carry, tokens, Py_ssize_t block_size):
    """The chain `keys` and what follows: `carry` (token ids after its last full block, fewer than
    a block), then `tokens`. Equal to token_keys over the whole; root is used if `keys` is empty."""
    return chain_of(keys, root, carry, tokens, token_block(block_size), True)


def text_keys_extend(
    KeyArray keys not None, uint64_t root, carry, text, Py_ssize_t block_bytes=BLOCK_BYTES
):
    """The chain `keys` and what follows it: `carry` (bytes after its last full block, fewer than a
    block), then `text`. Equal to text_keys over the whole; root is used if `keys` is empty."""
    return chain_of(keys, root, carry, text, text_block(block_bytes), False)


def xxh3(data):
    """XXH3-64 of bytes with seed 0; what the chain is made of."""
    cdef const uint8_t[::1] view = data
    return wl_xxh3(&view[0] if view.shape[0] else NULL, <size_t>view.shape[0])


def digest(data):
    """Digest of a long opaque string (an image): a chain over pieces of 4096 bytes. Never 0."""
    cdef const uint8_t[::1] view = data
    return wl_digest(&view[0] if view.shape[0] else NULL, <size_t>view.shape[0])


def _fail_allocation_after(long count):
    """Tests only: the allocation after `count` more of this module fails once."""
    wl_alloc_fail_after(count)
