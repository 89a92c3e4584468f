"""ZMTP 3.x bytes without sockets or clocks. See zmtp.pxd for the contract.

Cost: 0.15 us a message of three parts, and a copy of its bytes.
"""
cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy, memmove

import os


cdef extern from "alloc.h" nogil:
    void *wl_realloc(void *old, size_t size_bytes)
    void wl_free(void *block)
    void wl_alloc_fail_after(long n)

cdef extern from "sys/socket.h" nogil:
    ssize_t recv(int fd, void *data, size_t size, int flags)


cdef enum:
    AGAIN, WHOLE, SHORT


cdef uint64_t big_endian(const uint8_t *at, int size) noexcept nogil:
    cdef uint64_t value = 0
    cdef int i
    for i in range(size):
        value = value << 8 | at[i]
    return value


cdef Py_ssize_t part(const uint8_t *at, size_t have, int more, uint64_t *size) noexcept nogil:
    """Where the body of a message's part begins, for a part with or without `more` that has come
    whole; 0: it is none, or not all of it is here."""
    cdef size_t head = 2
    if have < 2 or at[0] & ~2 != more:
        return 0
    size[0] = at[1]
    if at[0] & 2:
        if have < 9:
            return 0
        head, size[0] = 9, big_endian(at + 1, 8)
    return <Py_ssize_t>head if size[0] <= have - head else 0


# Whom a socket of ours may talk to, in the RFC's words.
PEERS = {b"SUB": (b"PUB", b"XPUB"), b"DEALER": (b"ROUTER", b"DEALER", b"REP")}

# Signature, version 3.0, mechanism NULL, no server, filler.
HELLO = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)


@cython.final
cdef class Zmtp:
    """Our side of a connection: a `kind` of b"SUB" (of everything) or b"DEALER".

    max_bytes: of a message. Bytes come by `feed` or `receive` and go by `outgoing`.
    """

    def __cinit__(self, bytes kind not None, uint64_t max_bytes):
        if kind not in PEERS:
            raise ValueError(f"kind must be one of {sorted(PEERS)}, got {kind!r}")
        self.kind = kind
        self.max_bytes = max_bytes
        self.stage = GREETING
        self.parts = []
        self.out = HELLO
        self.why = b""

    def __dealloc__(self):
        wl_free(self.data)

    # Bytes in and out

    cdef int make_room(self, size_t more) except -1:
        """Room for `more` bytes behind what waits."""
        cdef size_t waiting = self.end - self.start, room = self.room or READ
        cdef uint8_t *data
        if self.end + more <= self.room:
            return 0
        if self.start and waiting + more <= self.room and self.start >= waiting:
            memmove(self.data, self.data + self.start, waiting)
            self.start, self.end = 0, waiting
            return 0
        while room < self.end + more:
            room *= 2
        data = <uint8_t *>wl_realloc(self.data, room)
        if data == NULL:
            raise MemoryError("no memory for a ZMTP connection")
        self.data, self.room = data, room
        return 0

    def feed(self, const uint8_t[::1] data not None):
        """Bytes of the peer."""
        cdef size_t size = data.shape[0]
        if size:
            self.make_room(size)
            memcpy(self.data + self.end, &data[0], size)
            self.end += size

    def receive(self, int fd):
        """Bytes read from the descriptor: 0 the peer is done, -1 there are none yet.

        Raises OSError: the connection is broken.
        """
        cdef ssize_t got
        self.make_room(READ)
        while True:
            got = recv(fd, self.data + self.end, self.room - self.end, 0)
            if got >= 0:
                self.end += <size_t>got
                break
            if errno == EINTR:
                continue
            if errno == EAGAIN:
                break
            raise OSError(errno, os.strerror(errno))
        return got

    def outgoing(self):
        """What is to be sent now; it is the owner's from here on."""
        out, self.out = self.out, b""
        return out

    cdef int say(self, bytes more) except -1:
        if PyBytes_GET_SIZE(self.out) + PyBytes_GET_SIZE(more) > MAX_OUT:
            return self.fail("it does not read what is sent")
        self.out = self.out + more
        return 0

    def unsent(self, bytes rest not None):
        """What `outgoing` gave and the socket did not take."""
        self.out = rest + self.out

    def send(self, list parts not None):
        """A message of ours, of small parts. ValueError: not `up`, or too much waits already."""
        cdef Py_ssize_t i, last = len(parts) - 1
        if self.stage != UP:
            raise ValueError("not connected")
        for i in range(last + 1):
            if len(parts[i]) > 255:
                raise ValueError("a part of more than 255 bytes")
            self.say(bytes([1 if i < last else 0, len(parts[i])]) + parts[i])

    def ping(self):
        """Ask the peer for a sign of life; one that calls itself 3.0 is not asked."""
        if self.stage == UP and self.minor:
            self.say(b"\x04\x07\x04PING\0\0")

    @property
    def up(self):
        """The handshake is done."""
        return self.stage == UP

    @property
    def waiting(self):
        """Bytes that came and are not taken."""
        return self.end - self.start

    # What they mean

    cdef int fail(self, str why) except -1:
        self.stage = FAILED
        self.why = why.encode("utf-8", "replace")
        raise ValueError(why)

    def take(self):
        """The next message, as a list of its parts; None: its bytes have not all come.

        Raises ValueError: the peer does not speak ZMTP to us. It does so ever after.
        """
        cdef list message
        cdef int found
        while True:
            if self.stage == UP:
                found = self.frame()
                if found == SHORT:
                    return None
                if found == WHOLE:
                    message, self.parts, self.parts_bytes = self.parts, [], 0
                    return message
            elif self.stage == GREETING:
                if not self.greeting():
                    return None
            elif self.stage == HANDSHAKE:
                if self.frame() == SHORT:
                    return None
            else:
                raise ValueError(self.why.decode())

    def apply(self, Intake intake not None, Py_ssize_t replica, uint64_t expected, uint64_t budget):
        """Batches of a publisher straight into the intake, where they wait: (how many, flags).

        Takes messages of three parts whose second is `expected` and its successors, at most
        STRAIGHT bytes of them, and stops behind one that needs a look (flags of `Intake.apply`;
        budget: blocks of one batch). All else is left to `take`. `last` is the payload of the last.
        Raises as `Intake.apply`; the batch that did is taken.
        """
        cdef const uint8_t *at
        cdef const uint8_t *payload = NULL
        cdef size_t end, have, stop = self.start + STRAIGHT
        cdef uint64_t size = 0, last_size = 0
        cdef Py_ssize_t head, count = 0
        cdef int flags = 0
        if self.stage != UP or self.parts:
            return 0, 0
        try:
            while not flags and self.start < stop:
                at = self.data + self.start
                have = self.end - self.start
                head = part(at, have, 1, &size)
                if head == 0:
                    break
                end = <size_t>head + <size_t>size
                if have - end < 10 or at[end] != 1 or at[end + 1] != 8:
                    break
                if big_endian(at + end + 2, 8) != expected + <uint64_t>count:
                    break
                end += 10
                head = part(at + end, have - end, 0, &size)
                if head == 0 or size > self.max_bytes:
                    break
                payload, last_size = at + end + head, size
                self.start += end + <size_t>head + <size_t>size
                count += 1
                flags = intake.apply_bytes(replica, payload, <size_t>size, budget)
        finally:
            if count:
                self.last = PyBytes_FromStringAndSize(<const char *>payload, <Py_ssize_t>last_size)
        return count, flags

    cdef int greeting(self) except -1:
        """1: it is read."""
        cdef const uint8_t *at = self.data + self.start
        cdef size_t size = self.end - self.start
        if size and at[0] != 0xFF or size > 9 and not at[9] & 1:
            self.fail("it does not speak ZMTP")
        if size > 10 and at[10] < 3:
            self.fail(f"it speaks ZMTP {at[10]}, not 3")
        if size < 64:
            return 0
        self.minor = at[11]
        if bytes(at[12:32]) != HELLO[12:32]:
            name = bytes(at[12:32]).rstrip(b"\0").decode("ascii", "replace")
            self.fail(f"it wants the security mechanism {name!r}, not NULL")
        self.start += 64
        self.stage = HANDSHAKE
        body = b"\x05READY\x0bSocket-Type" + len(self.kind).to_bytes(4, "big") + self.kind
        if self.kind == b"DEALER":
            body += b"\x08Identity" + bytes(4)
        self.say(b"\x04" + bytes([len(body)]) + body)
        return 1

    cdef int frame(self) except -1:
        """Read one frame. SHORT: it has not all come. WHOLE: a message has. AGAIN: look again."""
        cdef const uint8_t *at = self.data + self.start
        cdef size_t have = self.end - self.start, head
        cdef uint64_t size
        cdef uint8_t flags
        if have < 2:
            return self.short()
        flags = at[0]
        # more, long, command: a command is never followed by more.
        if flags > 7 or flags & 5 == 5:
            self.fail("a frame with unknown flags")
        if flags & 2:
            head = 9
            if have < 9:
                return self.short()
            size = big_endian(at + 1, 8)
        else:
            head, size = 2, at[1]
        if flags & 4:
            if size > MAX_COMMAND:
                self.fail(f"a command of {size} bytes")
        elif self.stage != UP:
            self.fail("a message before the handshake")
        elif size > self.max_bytes - self.parts_bytes:
            self.fail(f"a message of more than {self.max_bytes} bytes")
        if size > have - head:
            return self.short()
        self.start += head + size
        if flags & 4:
            self.command(at + head, size)
            return AGAIN
        if len(self.parts) == MAX_PARTS:
            self.fail(f"a message of more than {MAX_PARTS} parts")
        self.parts.append(PyBytes_FromStringAndSize(<const char *>at + head, <Py_ssize_t>size))
        self.parts_bytes += size
        return AGAIN if flags & 1 else WHOLE

    cdef int short(self) noexcept:
        """More bytes are needed. Where none wait, a quiet connection keeps no buffer."""
        if self.start == self.end:
            wl_free(self.data)
            self.data, self.room = NULL, 0
            self.start = self.end = 0
        return SHORT

    cdef int command(self, const uint8_t *at, size_t size) except -1:
        cdef size_t name = at[0] if size else 0
        cdef size_t rest
        if not name or name >= size:
            self.fail("a command without a name")
        at += 1 + name
        rest = size - 1 - name
        said = bytes((at - name)[:name])
        if said == b"ERROR":
            reason = bytes(at[1:rest]) if rest else b""
            self.fail("it refuses: " + reason.decode("utf-8", "replace"))
        if self.stage == HANDSHAKE:
            if said != b"READY":
                self.fail("a command before READY")
            return self.ready(at, rest)
        if said == b"PING":
            if rest < 2 or rest > 18:
                self.fail("a PING that is not one")
            context = bytes(at[2:rest])
            self.say(bytes([4, 5 + len(context)]) + b"\x04PONG" + context)
        return 0  # others, PONG among them, are a sign of life and nothing more

    cdef int ready(self, const uint8_t *at, size_t size) except -1:
        """READY's properties: name and value, each after its length."""
        cdef size_t i = 0, name
        cdef uint64_t value
        theirs = b""
        while i < size:
            name = at[i]
            if name == 0 or size - i < name + 5:
                self.fail("a READY that is not one")
            value = big_endian(at + i + 1 + name, 4)
            if value > size - i - name - 5:
                self.fail("a READY that is not one")
            if bytes((at + i + 1)[:name]).lower() == b"socket-type":
                theirs = bytes((at + i + 5 + name)[:value])
            i += name + 5 + value
        if theirs not in PEERS[self.kind]:
            self.fail(f"it is a {theirs.decode('ascii', 'replace')!r} socket")
        self.stage = UP
        if self.kind == b"SUB":
            self.say(b"\x00\x01\x01")  # subscribe to every topic
        return 0


def _fail_alloc_after(long n):
    """Tests: let n more allocations of this module succeed, fail the next one; -1: never fail."""
    wl_alloc_fail_after(n)
