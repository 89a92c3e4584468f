"""The gRPC server's side of one HTTP/2 connection. See session.pxd for the contract.

Costs: a stream is one Stream object, one entry of a dict and libnghttp2's own record; a turn is one
read, the handlers' calls and one write.
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, uint8_t, uint32_t
from libc.string cimport memcmp

from warmlane._core.h2.frames cimport (
    Frames, WL_STALLED_BYTES, wl_bucket_init, wl_bucket_take, wl_read_answers,
)
from warmlane._core.h2.nghttp2 cimport (
    NGHTTP2_DATA, NGHTTP2_FLAG_ACK, NGHTTP2_FLAG_END_STREAM, NGHTTP2_FLAG_NONE,
    NGHTTP2_HCAT_REQUEST, NGHTTP2_HEADERS, NGHTTP2_NO_ERROR, NGHTTP2_PING, nghttp2_data_provider,
    nghttp2_frame, nghttp2_nv, nghttp2_session_get_last_proc_stream_id,
    nghttp2_session_get_stream_user_data, nghttp2_session_resume_data, nghttp2_submit_goaway,
    nghttp2_submit_response, nghttp2_submit_shutdown_notice,
)
from warmlane._core.h2.streams cimport (
    WL_BAD_FLAG, WL_COMPRESSED, WL_INTERNAL, WL_RESOURCE_EXHAUSTED, WL_STREAM_FULL, WL_TOO_LONG,
    WL_UNIMPLEMENTED, Shared, Stream, percent_encoded,
)


cdef extern from "h2/grpc.h" nogil:
    const char *WL_DRAIN_PING
    nghttp2_nv wl_field(const char *name, const char *value, size_t size)
    size_t wl_trailers(
        nghttp2_nv *fields, char *digits, int status, const char *text, size_t size)

cdef enum:
    CALLS_A_TURN = 256       # streams served before others on the loop get their turn
    MESSAGES_A_CALL = 64     # messages of one stream before the next stream is served

cdef const char *CONTENT_TYPE = "application/grpc"
cdef bytes BAD_METHOD = b"405"
cdef bytes BAD_TYPE = b"415"


cdef class Session(Frames):
    """Streams of one connection and the handlers behind them."""

    def __cinit__(self, Shared shared not None, dict methods not None, on_error, *args):
        self.methods = methods
        self.on_error = on_error
        self.ready = []
        self.gone = []
        wl_bucket_init(&self.resets, shared.resets_burst, shared.resets_per_s)

    cdef int turn_asked(self) except -1:
        raise NotImplementedError

    def _wake(self, Stream stream not None):
        """Look at the stream's handler again: in this turn when one runs, else soon."""
        self.look(stream)
        if not self.busy:
            self.turn_asked()

    cdef int look(self, Stream stream) except -1:
        if not stream.queued:
            stream.queued = True
            self.ready.append(stream)
        return 0

    # What came in. No handler is called below, only from turn().

    cdef int frame_came(self, const nghttp2_frame *frame) except -1:
        cdef void *data
        cdef Stream stream
        if frame.hd.type == NGHTTP2_PING:
            if (
                frame.hd.flags & NGHTTP2_FLAG_ACK and self.noticed and not self.leaving
                and memcmp(frame.ping.opaque_data, WL_DRAIN_PING, 8) == 0
            ):
                self.final_goaway()
            return 0
        if frame.hd.type != NGHTTP2_HEADERS and frame.hd.type != NGHTTP2_DATA:
            return 0
        data = nghttp2_session_get_stream_user_data(self.session, frame.hd.stream_id)
        if data == NULL:
            return 0
        stream = <Stream> data
        if frame.hd.flags & NGHTTP2_FLAG_END_STREAM:
            stream.ended = True
        if stream.over:
            return 0
        if frame.hd.type == NGHTTP2_HEADERS and frame.headers.cat == NGHTTP2_HCAT_REQUEST:
            self.judge(stream)
        elif stream.bad_headers:
            self.refuse(stream, WL_RESOURCE_EXHAUSTED, "trailers are too long")
        if stream.ended and not stream.over:
            if stream.torn():
                self.refuse(stream, WL_INTERNAL, "the stream ended inside a message")
            else:
                self.look(stream)
        return 0

    cdef int judge(self, Stream stream) except -1:
        # The head is whole: find the method, or answer at once.
        cdef Shared shared = self.shared
        if stream.bad_headers:
            return self.refuse(stream, WL_RESOURCE_EXHAUSTED, "headers are too long")
        if not stream.posted:
            return self.reply(stream, BAD_METHOD)
        if not stream.typed:
            return self.reply(stream, BAD_TYPE)
        factory = self.methods.get(stream.path)
        if factory is None:
            shared.unknown_methods += 1
            return self.refuse(stream, WL_UNIMPLEMENTED, "unknown method")
        if stream.encoded:
            return self.refuse(stream, WL_UNIMPLEMENTED, "compressed messages are not supported")
        if (
            shared.open_streams > shared.streams
            or 4 * shared.held_bytes > 3 * shared.held_limit_bytes
        ):
            # A quarter of the memory is kept for the streams that are already under way.
            shared.refused_streams += 1
            return self.refuse(stream, WL_RESOURCE_EXHAUSTED, "the server is full")
        stream.factory = factory
        return 0

    cdef int take_data(self, int32_t id, const uint8_t *data, size_t size) except -1:
        cdef void *user_data = nghttp2_session_get_stream_user_data(self.session, id)
        cdef Stream stream
        cdef int fault
        if self.write_paused:
            self.withheld += size  # the client does not read: let it not write either
        else:
            self.consume(0, size)
        if user_data == NULL:
            return 0
        stream = <Stream> user_data
        if stream.over or stream.finished:
            self.consume(id, size)
            return 0
        if stream.shut or stream.out_bytes >= WL_STALLED_BYTES:
            stream.withheld += size
        else:
            self.consume(id, size)
        fault = stream.feed(data, size)
        if fault:
            return self.broken(stream, fault)
        if stream.messages:
            self.look(stream)
        return 0

    cdef int broken(self, Stream stream, int fault) except -1:
        cdef Shared shared = self.shared
        if fault == WL_COMPRESSED:  # without grpc-encoding: that was refused with the head
            return self.refuse(stream, WL_INTERNAL, "compressed message without grpc-encoding")
        if fault == WL_BAD_FLAG:
            return self.refuse(stream, WL_INTERNAL, "bad message flag")
        shared.refused_streams += 1
        if fault == WL_TOO_LONG:
            text = f"message of {stream.need} bytes, limit {shared.message_bytes}"
        elif fault == WL_STREAM_FULL:
            text = f"the stream keeps more than {shared.stream_bytes} bytes"
        else:
            text = "the server is full"
        return self.refuse(stream, WL_RESOURCE_EXHAUSTED, text)

    cdef int stream_closed(self, int32_t id, uint32_t error_code) except -1:
        cdef Stream stream = self.streams.get(id)
        if stream is None:
            return 0
        self.gone.append(stream)  # first: where there is no memory for it nothing has happened
        del self.streams[id]
        self.shared.open_streams -= 1
        if not stream.answered and not stream.finished:  # whatever code the reset bears
            self.shared.resets += 1
            if not wl_bucket_take(&self.resets):
                self.flooded = True
        stream.drop()
        stream.finished = True
        return 0

    # Handlers and what they answer.

    cdef int turn(self) except -1:
        # Serve what is ready, then write. What is left after CALLS_A_TURN waits for the next turn.
        cdef int calls = 0
        cdef Stream stream
        self.busy = True
        try:
            while self.ready or self.gone:
                if calls >= CALLS_A_TURN:
                    self.turn_asked()
                    break
                ready, self.ready = self.ready, []
                for stream in ready:
                    stream.queued = False
                    self.serve(stream)
                calls += len(ready)
                self.bury()
            self.pump()
            if self.relieved or (self.withheld and not self.write_paused):
                self.give_window()
                self.pump()
            self.bury()
        finally:
            self.busy = False
        return 0

    cdef int serve(self, Stream stream) except -1:
        cdef bytes message
        cdef Py_ssize_t before = stream.out_bytes
        if stream.over or stream.finished:
            return 0
        try:
            if stream.handler is None:
                stream.open()
            for message in stream.next_messages(MESSAGES_A_CALL):
                stream.handed_over(message)
                stream.handler.receive(message)
            if stream.messages:
                self.look(stream)
            elif stream.ended and not stream.told:
                stream.told = True
                stream.handler.half_closed()
            taken = stream.handler.take()
            status = stream.handler.status
            if stream.counts:
                stream.recount(stream.handler.held_bytes)
            elif taken or status is not None:
                stream.recount(0)
            if stream.pauses:
                stream.shut = stream.handler.paused
                if stream.withheld and not stream.shut and not stream.relieved:
                    stream.relieved = True
                    self.relieved.append(stream)
            fault = stream.put(taken) if taken else 0
        except Exception as error:
            self.shared.errors += 1
            self.on_error(error)
            return self.refuse(stream, WL_INTERNAL, "internal error")
        if fault:
            return self.broken(stream, fault)
        if taken:
            stream.answered = True
            if not before:
                stream.moved_s = self.now_s
            self.expected_bytes += stream.out_bytes - before
        if status is not None:
            return self.finish(stream, status[0], status[1])
        if taken:
            return self.answer(stream)
        return 0

    cdef int finish(self, Stream stream, int status, str text) except -1:
        # The queue, then trailers.
        stream.status = status
        stream.text = percent_encoded(text)
        stream.finished = True
        return self.answer(stream)

    cdef int refuse(self, Stream stream, int status, str text) except -1:
        # What is queued is dropped, in both directions; the handler hears that the stream is over.
        stream.drop()
        if stream.handler is not None:
            self.gone.append(stream)
        return self.finish(stream, status, text)

    cdef int answer(self, Stream stream) except -1:
        # Make libnghttp2 ask for what the stream has to send: head, messages, trailers.
        cdef nghttp2_nv fields[5]  # status, type, accepted encoding, and two of the trailers
        cdef char digits[2]
        cdef size_t count = 2
        cdef nghttp2_data_provider provider
        if stream.started:
            if stream.idle:
                stream.idle = False
                self.check(nghttp2_session_resume_data(self.session, stream.id))
            return 0
        stream.started = True
        fields[0] = wl_field(":status", "200", 3)
        fields[1] = wl_field("content-type", CONTENT_TYPE, 16)
        provider.source.ptr = <void *> stream
        provider.read_callback = wl_read_answers
        if not stream.finished or stream.out_bytes:
            return self.check(
                nghttp2_submit_response(self.session, stream.id, fields, count, &provider)
            )
        if stream.encoded:
            fields[count] = wl_field("grpc-accept-encoding", "identity", 8)
            count += 1
        count += wl_trailers(
            &fields[count], digits, stream.status, PyBytes_AS_STRING(stream.text),
            PyBytes_GET_SIZE(stream.text),
        )
        return self.check(nghttp2_submit_response(self.session, stream.id, fields, count, NULL))

    cdef int reply(self, Stream stream, bytes http_status) except -1:
        # Not gRPC: an HTTP status without a body.
        cdef nghttp2_nv fields[2]
        stream.drop()
        stream.started = stream.finished = True
        fields[0] = wl_field(":status", PyBytes_AS_STRING(http_status), 3)
        fields[1] = wl_field("allow", "POST", 4)
        return self.check(nghttp2_submit_response(
            self.session, stream.id, fields, 2 if http_status is BAD_METHOD else 1, NULL
        ))

    cdef int bury(self) except -1:
        # Tell handlers that their stream is over, each once.
        cdef Stream stream
        while self.gone:
            stream = self.gone.pop()
            handler, stream.handler = stream.handler, None
            stream.factory = stream.owner = None
            if handler is None:
                continue
            try:
                handler.closed()
            except Exception as error:
                self.shared.errors += 1
                self.on_error(error)
        return 0

    cdef int give_window(self) except -1:
        # The client reads again, or the handler listens again: let it write.
        cdef Stream stream
        if self.withheld and not self.write_paused:
            self.consume(0, self.withheld)
            self.withheld = 0
        relieved, self.relieved = self.relieved, []
        for stream in relieved:
            stream.relieved = False
            if not stream.shut and stream.out_bytes < WL_STALLED_BYTES:
                size, stream.withheld = stream.withheld, 0
                if stream.id in self.streams:
                    self.consume(stream.id, size)
        return 0

    # The end.

    cdef int announce_goaway(self) except -1:
        # New streams are still served until the client has seen it: its PING comes back.
        if not self.noticed:
            self.noticed = True
            self.asks_after_goaway = True
            self.check(nghttp2_submit_shutdown_notice(self.session))
        return 0

    cdef int final_goaway(self) except -1:
        if not self.leaving:
            self.leaving = True
            self.check(nghttp2_submit_goaway(
                self.session, NGHTTP2_FLAG_NONE,
                nghttp2_session_get_last_proc_stream_id(self.session), NGHTTP2_NO_ERROR, NULL, 0,
            ))
        return 0

    cdef int end_all(self) except -1:
        # The transport is gone: so is every stream.
        cdef Stream stream
        self.lost = True
        self.ready = []
        for stream in self.streams.values():
            stream.drop()
            stream.finished = True
            self.gone.append(stream)
        self.shared.open_streams -= len(self.streams)
        self.streams.clear()
        return self.bury()
