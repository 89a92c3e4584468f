"""`Session` as an asyncio protocol. See connection.pxd for the contract."""
cimport cython
from cpython.bytes cimport PyBytes_GET_SIZE

from warmlane._core.h2.frames cimport wl_now_s
from warmlane._core.h2.nghttp2 cimport (
    NGHTTP2_CANCEL, NGHTTP2_ENHANCE_YOUR_CALM, NGHTTP2_FLAG_NONE, nghttp2_session_terminate_session,
    nghttp2_session_want_read, nghttp2_session_want_write, nghttp2_submit_ping,
    nghttp2_submit_rst_stream, nghttp2_version,
)
from warmlane._core.h2.session cimport Session
from warmlane._core.h2.streams cimport Shared, Stream

# From the connection to the client's preface, TLS handshake excluded.
cdef double GREETING_S = 10.0


@cython.final
cdef class Connection(Session):
    """One client. methods: path (bytes) -> factory(wake) -> handler (`envoy/streams.py`).

    on_error hears exceptions of handlers; their stream ends with INTERNAL. on_made(connection) is
    called when there is a transport (with TLS: after the handshake, which may never come), and then
    on_lost(connection) once, when it is gone and every handler has been told.
    """

    def __cinit__(
        self, Shared shared not None, dict methods not None, on_error, on_made, on_lost, loop
    ):
        self.on_made = on_made
        self.on_lost = on_lost
        self.loop = loop

    # What asyncio calls.

    def connection_made(self, transport):
        self.transport = transport
        self.write = transport.write
        self.on_made(self)
        self.now_s = wl_now_s()
        self.opened_s = self.read_s = self.now_s
        self.shared.total_connections += 1
        self.shared.open_connections += 1
        self.counted = True
        if self.shared.open_connections > self.shared.connections:
            self.shared.refused_connections += 1
            self.leave(False)
            return
        tls = transport.get_extra_info("ssl_object")
        if tls is not None and tls.selected_alpn_protocol() != "h2":
            self.shared.refused_connections += 1
            self.leave(False)
            return
        try:
            self.greet()
            self.pump()
        except MemoryError:
            self.starved()

    def data_received(self, bytes data not None):
        if not self.lost:
            try:
                self.take_in(data)
            except MemoryError:
                self.starved()

    cdef int starved(self) except -1:
        # No memory, and libnghttp2 does not go on after that: this connection goes, others stay.
        self.shared.errors += 1
        return self.leave(False)

    cdef int take_in(self, bytes data) except -1:
        cdef bint goes_on
        self.now_s = self.read_s = wl_now_s()
        self.shared.bytes_in += PyBytes_GET_SIZE(data)
        goes_on = self.feed(data)
        if self.flooded:
            self.shared.floods += 1
            self.flooded = goes_on = False
            nghttp2_session_terminate_session(self.session, NGHTTP2_ENHANCE_YOUR_CALM)
        if goes_on:
            self.guarded_turn()
        else:
            self.pump()
            self.leave(True)
        return 0

    def eof_received(self):
        """The client has closed; whatever is under way has no reader."""

    def connection_lost(self, error):
        self.transport = self.write = None
        if self.counted:
            self.counted = False
            self.shared.open_connections -= 1
        self.end_all()
        self.on_lost(self)

    def pause_writing(self):
        self.write_paused = True

    def resume_writing(self):
        self.write_paused = False
        if not self.busy:
            self.guarded_turn()

    # What Session asks for.

    cdef int written(self, bytes data) except -1:
        if self.write is not None:
            self.write(data)
        return 0

    cdef int turn_asked(self) except -1:
        if not self.scheduled and not self.lost:
            self.scheduled = True
            self.loop.call_soon(self._turn)
        return 0

    def _turn(self):
        self.scheduled = False
        if not self.lost:
            self.guarded_turn()

    cdef int guarded_turn(self) except -1:
        try:
            self.turn()
        except MemoryError:
            self.starved()
        if self.lost:
            return 0
        if self.ready:  # more than one turn's work is here already: read no more for now
            if not self.read_paused:
                self.read_paused = True
                self.transport.pause_reading()
        elif self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        if self.write_paused:
            return 0
        if (
            self.leaving and not self.streams
            or not nghttp2_session_want_read(self.session)
            and not nghttp2_session_want_write(self.session)
        ):
            self.leave(True)
        return 0

    cdef int leave(self, bint flushed) except -1:
        # Close; what is written already still goes out when `flushed`.
        if not self.lost:
            self.lost = True
            if flushed:
                self.transport.close()
            else:
                self.transport.abort()
        return 0

    # What the server calls.

    def tick(self, double now_s):
        """Time-outs: call every second or so with the time of `time.monotonic`."""
        self.now_s = now_s
        if not self.lost and self.transport is not None:
            try:
                self.check_times(now_s)
            except MemoryError:
                self.starved()

    cdef int check_times(self, double now_s) except -1:
        cdef Shared shared = self.shared
        cdef Stream stream
        if not self.greeted and now_s - self.opened_s > GREETING_S:
            return self.leave(False)
        if now_s - self.read_s > shared.keepalive_s + shared.keepalive_timeout_s:
            shared.stalls += 1
            return self.leave(False)
        if now_s - self.read_s > shared.keepalive_s and self.pinged_s < self.read_s:
            self.pinged_s = now_s
            self.check(nghttp2_submit_ping(self.session, NGHTTP2_FLAG_NONE, NULL))
        for stream in self.streams.values():
            if stream.out_bytes and now_s - stream.moved_s > shared.stall_s:
                shared.stalls += 1
                stream.drop()
                self.gone.append(stream)
                self.check(nghttp2_submit_rst_stream(
                    self.session, NGHTTP2_FLAG_NONE, stream.id, NGHTTP2_CANCEL
                ))
        return self.guarded_turn()

    def drain(self):
        """Announce GOAWAY; it becomes final when the client has answered or by `drain_now`."""
        self.say_goodbye(False)

    def drain_now(self):
        """Take no further stream; the connection closes with the last one that is open."""
        self.say_goodbye(True)

    cdef int say_goodbye(self, bint final) except -1:
        if self.lost or self.transport is None:
            return 0
        try:
            self.announce_goaway()
            if final:
                self.final_goaway()
        except MemoryError:
            return self.starved()
        return self.guarded_turn()

    def abort(self):
        """Cut the connection."""
        if self.transport is not None:
            self.leave(False)

    @property
    def open_streams(self):
        """How many streams are open."""
        return len(self.streams)


def library_version():
    """The version of libnghttp2 that is loaded."""
    return (<bytes> nghttp2_version(0).version_str).decode("ascii")
