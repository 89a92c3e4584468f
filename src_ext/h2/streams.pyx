"""One gRPC stream, between DATA frames and messages. See streams.pxd for the contract.

A message is copied once on its way in (from the read buffer into the bytes object that the handler
gets) and once on its way out (into the bytes object that is written).
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_XDECREF
from libc.stdint cimport uint8_t, int32_t
from libc.string cimport memcpy


cdef extern from "Python.h":
    PyObject *new_bytes "PyBytes_FromStringAndSize"(const char *data, Py_ssize_t size)
    int resize_bytes "_PyBytes_Resize"(PyObject **data, Py_ssize_t size) except -1

cdef enum:
    PREFIX = 5              # a flag and the length, big endian (gRPC over HTTP/2, "Requests")
    FIRST_ROOM = 64 * 1024  # reserved for a message before its bytes have come
    OVERHEAD = 64           # charged for a message on top of its bytes
    FORGET = 64             # sent answers that are kept in the list before it is cut
    MOST_FACES = 64         # kinds of handlers; there are as many as methods

cdef bytes NO_TEXT = b""


@cython.final
cdef class Shared:
    """Limits and counters of one server. All sizes in bytes, all times in seconds.

    message_bytes: longest message. stream_bytes: most that one stream keeps. held_limit_bytes: most
    that all streams keep. header_bytes: longest head. resets and control frames: token buckets a
    connection. Counters only grow, except held_bytes, open_streams and open_connections.
    """

    def __init__(
        self, *, Py_ssize_t message_bytes, Py_ssize_t stream_bytes, Py_ssize_t held_limit_bytes,
        Py_ssize_t header_bytes, Py_ssize_t streams_per_connection, Py_ssize_t streams,
        Py_ssize_t connections, Py_ssize_t stream_window_bytes,
        Py_ssize_t connection_window_bytes, double keepalive_s, double keepalive_timeout_s,
        double stall_s, double resets_burst, double resets_per_s, double control_burst,
        double control_per_s,
    ):
        self.faces = {}
        self.message_bytes = message_bytes
        self.stream_bytes = stream_bytes
        self.held_limit_bytes = held_limit_bytes
        self.header_bytes = header_bytes
        self.streams_per_connection = streams_per_connection
        self.streams = streams
        self.connections = connections
        self.stream_window_bytes = stream_window_bytes
        self.connection_window_bytes = connection_window_bytes
        self.keepalive_s = keepalive_s
        self.keepalive_timeout_s = keepalive_timeout_s
        self.stall_s = stall_s
        self.resets_burst = resets_burst
        self.resets_per_s = resets_per_s
        self.control_burst = control_burst
        self.control_per_s = control_per_s

    def stats(self):
        """Counters and gauges as numbers."""
        return {
            "open_connections": self.open_connections,
            "open_streams": self.open_streams,
            "held_bytes": self.held_bytes,
            "peak_held_bytes": self.peak_held_bytes,
            "connections_total": self.total_connections,
            "streams_total": self.total_streams,
            "messages_in_total": self.messages_in,
            "messages_out_total": self.messages_out,
            "bytes_in_total": self.bytes_in,
            "bytes_out_total": self.bytes_out,
            "resets_total": self.resets,
            "refused_streams_total": self.refused_streams,
            "refused_connections_total": self.refused_connections,
            "unknown_methods_total": self.unknown_methods,
            "floods_total": self.floods,
            "pings_total": self.pings,
            "stalls_total": self.stalls,
            "errors_total": self.errors,
        }

    cdef bint charge(self, Py_ssize_t size) noexcept:
        # Whether the limit of all streams still holds.
        self.held_bytes += size
        if self.held_bytes > self.peak_held_bytes:
            self.peak_held_bytes = self.held_bytes
        return self.held_bytes <= self.held_limit_bytes


@cython.final
@cython.freelist(256)
cdef class Stream:
    """One gRPC stream. Calling it says that its handler has output (the handler's `wake`)."""

    def __init__(self, Shared shared not None, owner, int32_t number):
        self.begin(shared, owner, number)

    cdef int begin(self, Shared shared, object owner, int32_t number) except -1:
        self.shared = shared
        self.owner = owner
        self.id = number
        self.text = NO_TEXT
        self.messages = []
        self.out = []
        return 0

    def __dealloc__(self):
        Py_XDECREF(self.part)
        if self.shared is not None:
            self.shared.held_bytes -= self.held
            self.held = 0

    def __call__(self):
        """Look at the handler's output soon. Nothing happens when the stream is over."""
        if self.handler is not None and not self.queued:
            self.owner._wake(self)

    def feed_bytes(self, bytes data not None):
        """Messages that `data` completes, and the code of what is wrong (0: nothing).

        For tests: the connection calls the same machine without this face.
        """
        cdef int code = self.feed(
            <const uint8_t *> PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data)
        )
        messages = self.messages
        self.messages = []
        return messages, code

    cdef int keep(self, Py_ssize_t size) noexcept:
        # Charge `size` more; say which limit is passed.
        self.held += size
        if not self.shared.charge(size):
            return WL_SERVER_FULL
        return WL_STREAM_FULL if self.held > self.shared.stream_bytes else WL_FED

    cdef void let_go(self, Py_ssize_t size) noexcept:
        self.held -= size
        self.shared.held_bytes -= size

    cdef void handed_over(self, bytes message) noexcept:
        self.given += PyBytes_GET_SIZE(message) + OVERHEAD

    cdef void recount(self, Py_ssize_t held_bytes) noexcept:
        # What the handler holds now; less than it got.
        if held_bytes < 0:
            held_bytes = 0
        self.let_go(self.given - held_bytes)
        self.given = held_bytes

    cdef bint torn(self) noexcept:
        # The client ended its side inside a message.
        return self.prefix_size > 0

    cdef int feed(self, const uint8_t *data, Py_ssize_t size) except -1:
        # Take in DATA. A code other than WL_FED ends the stream; what came before it stays whole.
        cdef Py_ssize_t n
        cdef int code
        while size > 0:
            if self.prefix_size < PREFIX:
                n = min(PREFIX - self.prefix_size, size)
                memcpy(&self.prefix[self.prefix_size], data, n)
                self.prefix_size += <int> n
                data += n
                size -= n
                if self.prefix_size < PREFIX:
                    return WL_FED
                if self.prefix[0]:
                    return WL_COMPRESSED if self.prefix[0] == 1 else WL_BAD_FLAG
                self.need = (
                    (<Py_ssize_t> self.prefix[1] << 24) | (<Py_ssize_t> self.prefix[2] << 16)
                    | (<Py_ssize_t> self.prefix[3] << 8) | self.prefix[4]
                )
                if self.need > self.shared.message_bytes:
                    return WL_TOO_LONG
                self.have = 0
                self.room = min(self.need, max(FIRST_ROOM, size))
                code = self.keep(self.room + OVERHEAD)
                if code:
                    self.let_go(self.room + OVERHEAD)
                    self.room = 0
                    return code
                self.part = new_bytes(NULL, self.room)
                if self.part == NULL:
                    raise MemoryError
            n = min(self.need - self.have, size)
            if self.have + n > self.room:
                code = self.grow(self.have + n)
                if code:
                    return code
            memcpy(PyBytes_AS_STRING(<object> self.part) + self.have, data, n)
            self.have += n
            data += n
            size -= n
            if self.have == self.need:
                self.complete()
        return WL_FED

    cdef int grow(self, Py_ssize_t least) except -1:
        cdef Py_ssize_t room = min(self.need, max(least, 2 * self.room))
        cdef int code = self.keep(room - self.room)
        if code:
            self.let_go(room - self.room)
            return code
        if resize_bytes(&self.part, room) < 0:
            self.room = 0
            raise MemoryError
        self.room = room
        return WL_FED

    cdef int complete(self) except -1:
        message = <object> self.part
        Py_XDECREF(self.part)  # `message` holds it now
        self.part = NULL
        self.prefix_size = 0
        self.messages.append(message)
        self.shared.messages_in += 1
        return 0

    cdef int open(self) except -1:
        # The handler, and which of the optional parts of its face it has.
        cdef dict faces = self.shared.faces
        handler = self.factory(self)
        found = faces.get(type(handler))
        if found is None:
            if len(faces) >= MOST_FACES:
                faces.clear()
            found = (hasattr(handler, "held_bytes"), hasattr(handler, "paused"))
            faces[type(handler)] = found
        self.counts, self.pauses = <tuple>found
        self.handler = handler
        return 0

    cdef list next_messages(self, Py_ssize_t most):
        # The oldest ones that the handler has not seen.
        cdef list taken = self.messages
        if len(taken) <= most:
            self.messages = []
        else:
            self.messages = taken[most:]
            del taken[most:]
        return taken

    cdef int put(self, list messages) except -1:
        # Queue answers. The code says which limit is passed.
        cdef Py_ssize_t size = 0
        cdef bytes message
        for message in messages:
            size += PyBytes_GET_SIZE(message) + PREFIX
        self.out.extend(messages)
        self.out_bytes += size
        self.shared.messages_out += len(messages)
        return self.keep(size)

    cdef void copy_out(self, uint8_t *to, Py_ssize_t size) noexcept:
        # The next `size` bytes of the queue, which holds at least as many, each with its prefix.
        cdef bytes message
        cdef Py_ssize_t length, n
        cdef uint8_t prefix[PREFIX]
        self.out_bytes -= size
        self.let_go(size)
        while size > 0:
            message = <bytes> self.out[self.out_at]
            length = PyBytes_GET_SIZE(message)
            if self.out_offset < PREFIX:
                prefix[0] = 0
                prefix[1] = (length >> 24) & 0xFF
                prefix[2] = (length >> 16) & 0xFF
                prefix[3] = (length >> 8) & 0xFF
                prefix[4] = length & 0xFF
                n = min(PREFIX - self.out_offset, size)
                memcpy(to, &prefix[self.out_offset], n)
            else:
                n = min(PREFIX + length - self.out_offset, size)
                memcpy(to, PyBytes_AS_STRING(message) + self.out_offset - PREFIX, n)
            to += n
            size -= n
            self.out_offset += n
            if self.out_offset == PREFIX + length:
                self.out_offset = 0
                self.out[self.out_at] = None
                self.out_at += 1
        if self.out_at == len(self.out):
            self.out.clear()
            self.out_at = 0
        elif self.out_at >= FORGET:
            del self.out[:self.out_at]
            self.out_at = 0

    cdef void drop(self) noexcept:
        # Forget both queues and what is charged for them.
        self.over = True
        self.messages.clear()
        self.out.clear()
        self.out_at = self.out_offset = self.out_bytes = 0
        Py_XDECREF(self.part)
        self.part = NULL
        self.prefix_size = 0
        self.shared.held_bytes -= self.held
        self.held = self.given = 0


cdef bytes percent_encoded(str text):
    # grpc-message (PROTOCOL-HTTP2): printable ASCII but % as it is, other bytes of UTF-8 as %XX.
    cdef uint8_t byte
    if not text:
        return NO_TEXT
    out = bytearray()
    for byte in text.encode("utf-8", "replace")[:1024]:
        if 0x20 <= byte <= 0x7E and byte != c"%":
            out.append(byte)
        else:
            out += b"%%%02X" % byte
    return bytes(out)


def percent_encode(str text not None):
    """`text` as the value of grpc-message; at most 1,024 bytes of it before encoding."""
    return percent_encoded(text)
