"""One ZMTP 3.x connection as bytes: greeting, NULL handshake, frames, heartbeats.

https://rfc.zeromq.org/spec/23 (3.0) and /37 (3.1). We call ourselves 3.0: a subscription then is a
message, which every publisher understands, and libzmq answers PING all the same.

Never trusts its peer: a frame's length is believed only as far as its bytes have come, messages,
their parts and what waits to be sent have limits.
"""

from libc.stdint cimport uint8_t, uint64_t

from warmlane._core.kv_events cimport Intake


cdef enum:
    READ = 65536        # bytes of one look at a socket
    MAX_PARTS = 16      # of a message: an engine's batch has 3, a replayed one 4
    MAX_COMMAND = 4096  # bytes
    MAX_OUT = 16384     # bytes that wait to be sent
    STRAIGHT = 65536    # bytes of batches that one call of `apply` takes, about 0.2 ms

cdef enum Stage:
    GREETING, HANDSHAKE, UP, FAILED


cdef class Zmtp:
    cdef uint8_t *data
    cdef size_t room, start, end
    cdef uint64_t max_bytes, parts_bytes
    cdef Stage stage
    cdef bytes kind, why, out
    cdef list parts
    cdef readonly int minor
    cdef readonly bytes last

    cdef int make_room(self, size_t more) except -1
    cdef int short(self) noexcept
    cdef int fail(self, str why) except -1
    cdef int greeting(self) except -1
    cdef int command(self, const uint8_t *at, size_t size) except -1
    cdef int ready(self, const uint8_t *at, size_t size) except -1
    cdef int frame(self) except -1
    cdef int say(self, bytes more) except -1
