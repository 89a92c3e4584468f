"""Bytes to streams and back, over libnghttp2's memory API. See frames.pxd for the contract."""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int32_t, uint8_t, uint32_t
from libc.string cimport memcmp, memcpy

from warmlane._core.h2.nghttp2 cimport *
from warmlane._core.h2.streams cimport Shared, Stream


cdef extern from "h2/grpc.h" nogil:
    const char *WL_DRAIN_PING
    bint wl_same(const uint8_t *data, size_t size, const char *word)
    bint wl_is_grpc(const uint8_t *value, size_t size)
    size_t wl_trailers(
        nghttp2_nv *fields, char *digits, int status, const char *text, size_t size)

cdef extern from "h2/memory.h" nogil:
    nghttp2_mem wl_h2_memory
    nghttp2_option *wl_h2_options()

cdef extern from "alloc.h" nogil:
    void wl_alloc_fail_after(long n)
    long wl_alloc_countdown

cdef extern from "Python.h":
    int resize_bytes "_PyBytes_Resize"(PyObject **data, Py_ssize_t size) except -1

cdef enum:
    WRITE_BYTES = 256 * 1024    # written at once at most; then the transport may say stop
    OUT_ROOM = 2048             # of a write besides the answers: heads, trailers, settings
    NO_RFC7540_PRIORITIES = 9   # RFC 9218, 2.1: the peer need not send priorities


cdef int on_begin_frame(
    nghttp2_session *session, const nghttp2_frame_hd *head, void *user_data
) noexcept:
    (<Frames> user_data).frame_begins(head)
    return 0


cdef int on_begin_headers(
    nghttp2_session *session, const nghttp2_frame *frame, void *user_data
) noexcept:
    cdef Frames self = <Frames> user_data
    cdef Stream stream
    if frame.hd.type != NGHTTP2_HEADERS or frame.headers.cat != NGHTTP2_HCAT_REQUEST:
        return 0
    try:
        stream = Stream.__new__(Stream)
        stream.begin(self.shared, self, frame.hd.stream_id)
        self.streams[stream.id] = stream
        nghttp2_session_set_stream_user_data(session, stream.id, <void *> stream)
    except MemoryError as error:
        self.failure = error
        return NGHTTP2_ERR_CALLBACK_FAILURE
    self.shared.total_streams += 1
    self.shared.open_streams += 1
    return 0


cdef int on_header(
    nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t name_size,
    const uint8_t *value, size_t size, uint8_t flags, void *user_data,
) noexcept:
    cdef Frames self = <Frames> user_data
    cdef void *data = nghttp2_session_get_stream_user_data(session, frame.hd.stream_id)
    cdef Stream stream
    if data == NULL:
        return 0
    stream = <Stream> data
    stream.header_bytes += name_size + size + 32  # as SETTINGS_MAX_HEADER_LIST_SIZE counts
    if stream.header_bytes > self.shared.header_bytes:
        stream.bad_headers = True
    elif frame.headers.cat != NGHTTP2_HCAT_REQUEST:
        pass  # trailers of a client hold nothing that a gRPC server reads
    elif wl_same(name, name_size, ":path"):
        try:
            # Nearly all streams of a connection ask for the same.
            if self.path is None or not (
                PyBytes_GET_SIZE(self.path) == <Py_ssize_t> size
                and memcmp(PyBytes_AS_STRING(self.path), value, size) == 0
            ):
                self.path = PyBytes_FromStringAndSize(<const char *> value, size)
            stream.path = self.path
        except MemoryError as error:
            self.failure = error
            return NGHTTP2_ERR_CALLBACK_FAILURE
    elif wl_same(name, name_size, ":method"):
        stream.posted = wl_same(value, size, "POST")
    elif wl_same(name, name_size, "content-type"):
        stream.typed = wl_is_grpc(value, size)
    elif wl_same(name, name_size, "grpc-encoding"):
        stream.encoded = not wl_same(value, size, "identity")
    return 0


cdef int on_frame_recv(
    nghttp2_session *session, const nghttp2_frame *frame, void *user_data
) noexcept:
    cdef Frames self = <Frames> user_data
    try:
        self.frame_came(frame)
    except BaseException as error:
        self.failure = error
        return NGHTTP2_ERR_CALLBACK_FAILURE
    return 0


cdef int on_data(
    nghttp2_session *session, uint8_t flags, int32_t id, const uint8_t *data, size_t size,
    void *user_data,
) noexcept:
    cdef Frames self = <Frames> user_data
    try:
        self.take_data(id, data, size)
    except BaseException as error:
        self.failure = error
        return NGHTTP2_ERR_CALLBACK_FAILURE
    return 0


cdef int on_stream_close(
    nghttp2_session *session, int32_t id, uint32_t error_code, void *user_data
) noexcept:
    cdef Frames self = <Frames> user_data
    try:
        self.stream_closed(id, error_code)
    except BaseException as error:
        self.failure = error
        return NGHTTP2_ERR_CALLBACK_FAILURE
    return 0


cdef int on_frame_send(
    nghttp2_session *session, const nghttp2_frame *frame, void *user_data
) noexcept:
    cdef void *data
    cdef Frames self = <Frames> user_data
    # Our side has ended. A client that has not is told to stop (RFC 9113, 8.1).
    if frame.hd.type == NGHTTP2_HEADERS and frame.hd.flags & NGHTTP2_FLAG_END_STREAM:
        data = nghttp2_session_get_stream_user_data(session, frame.hd.stream_id)
        if data != NULL and not (<Stream> data).ended:
            return self.judged(nghttp2_submit_rst_stream(
                session, NGHTTP2_FLAG_NONE, frame.hd.stream_id, NGHTTP2_NO_ERROR
            ))
    elif frame.hd.type == NGHTTP2_GOAWAY and self.asks_after_goaway:
        self.asks_after_goaway = False
        return self.judged(nghttp2_submit_ping(
            session, NGHTTP2_FLAG_NONE, <const uint8_t *> WL_DRAIN_PING
        ))
    return 0


cdef ssize_t wl_read_answers(
    nghttp2_session *session, int32_t id, uint8_t *buffer, size_t room, uint32_t *flags,
    nghttp2_data_source *source, void *user_data,
) noexcept:
    cdef Stream stream = <Stream> source.ptr  # in `streams` for as long as libnghttp2 has it open
    cdef Py_ssize_t size = min(<Py_ssize_t> room, stream.out_bytes)
    cdef nghttp2_nv fields[2]
    cdef char digits[2]
    cdef size_t count
    if size == stream.out_bytes and stream.finished:
        flags[0] |= NGHTTP2_DATA_FLAG_EOF | NGHTTP2_DATA_FLAG_NO_END_STREAM
        count = wl_trailers(
            fields, digits, stream.status, PyBytes_AS_STRING(stream.text),
            PyBytes_GET_SIZE(stream.text),
        )
        if (<Frames> user_data).judged(nghttp2_submit_trailer(session, id, fields, count)):
            return NGHTTP2_ERR_CALLBACK_FAILURE
    elif size == 0:
        stream.idle = True
        return NGHTTP2_ERR_DEFERRED
    if size:
        flags[0] |= NGHTTP2_DATA_FLAG_NO_COPY
    return size


cdef int send_data(
    nghttp2_session *session, nghttp2_frame *frame, const uint8_t *head, size_t size,
    nghttp2_data_source *source, void *user_data,
) noexcept:
    cdef Frames self = <Frames> user_data
    cdef Stream stream = <Stream> source.ptr
    cdef uint8_t *to
    if self.out_size >= WRITE_BYTES:
        self.full = True
        return NGHTTP2_ERR_WOULDBLOCK
    try:
        self.room_for(9 + size)
        if stream.withheld and stream.out_bytes < WL_STALLED_BYTES and not stream.relieved:
            stream.relieved = True
            self.relieved.append(stream)
    except MemoryError as error:
        self.failure = error
        return NGHTTP2_ERR_CALLBACK_FAILURE
    to = <uint8_t *> PyBytes_AS_STRING(self.out) + self.out_size
    memcpy(to, head, 9)
    stream.copy_out(to + 9, size)
    stream.moved_s = self.now_s
    self.out_size += 9 + size
    wl_bucket_give(&self.control, 4)  # each frame may be answered with WINDOW_UPDATE
    return 0


cdef nghttp2_session_callbacks *make_callbacks() except NULL:
    cdef nghttp2_session_callbacks *made
    if nghttp2_session_callbacks_new(&made):
        raise MemoryError
    nghttp2_session_callbacks_set_on_begin_frame_callback(made, on_begin_frame)
    nghttp2_session_callbacks_set_on_begin_headers_callback(made, on_begin_headers)
    nghttp2_session_callbacks_set_on_header_callback(made, on_header)
    nghttp2_session_callbacks_set_on_frame_recv_callback(made, on_frame_recv)
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(made, on_data)
    nghttp2_session_callbacks_set_on_stream_close_callback(made, on_stream_close)
    nghttp2_session_callbacks_set_on_frame_send_callback(made, on_frame_send)
    nghttp2_session_callbacks_set_send_data_callback(made, send_data)
    return made


cdef nghttp2_session_callbacks *CALLBACKS = make_callbacks()
cdef nghttp2_option *OPTIONS = wl_h2_options()
if OPTIONS == NULL:
    raise MemoryError


cdef class Frames:
    """libnghttp2's session, the streams that it has open, and the bytes that leave."""

    def __cinit__(self, Shared shared not None, *args, **kwargs):
        self.shared = shared
        self.streams = {}
        self.relieved = []
        self.now_s = wl_now_s()
        wl_bucket_init(&self.control, shared.control_burst, shared.control_per_s)
        if nghttp2_session_server_new3(
            &self.session, CALLBACKS, <void *> self, OPTIONS, &wl_h2_memory
        ):
            self.session = NULL  # it is freed, but the pointer was set
            raise MemoryError

    def __dealloc__(self):
        # One that ran out of memory or was stopped inside is left to the process: libnghttp2 (1.52)
        # may hold an answer twice then, and would free it twice.
        if not self.spoilt:
            nghttp2_session_del(self.session)

    cdef int written(self, bytes data) except -1:
        raise NotImplementedError

    cdef int frame_came(self, const nghttp2_frame *frame) except -1:
        raise NotImplementedError

    cdef int take_data(self, int32_t id, const uint8_t *data, size_t size) except -1:
        raise NotImplementedError

    cdef int stream_closed(self, int32_t id, uint32_t error_code) except -1:
        raise NotImplementedError

    cdef void frame_begins(self, const nghttp2_frame_hd *head) noexcept:
        # What costs us work and brings nothing is paid for; `flooded` is judged after the read.
        cdef bint paid = True
        self.greeted = True
        if head.type == NGHTTP2_DATA:
            if head.length == 0 and not head.flags & NGHTTP2_FLAG_END_STREAM:
                paid = wl_bucket_take(&self.control)
        elif head.type == NGHTTP2_RST_STREAM:  # those of open streams are judged as they close
            if nghttp2_session_get_stream_user_data(self.session, head.stream_id) == NULL:
                paid = wl_bucket_take(&self.control)
        elif head.type != NGHTTP2_HEADERS:
            if head.type == NGHTTP2_PING and not head.flags & NGHTTP2_FLAG_ACK:
                self.shared.pings += 1
            paid = wl_bucket_take(&self.control)
        if not paid:
            self.flooded = True

    cdef int greet(self) except -1:
        # Our SETTINGS and the connection's window.
        cdef nghttp2_settings_entry entries[4]
        cdef Shared shared = self.shared
        entries[0].settings_id = NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS
        entries[0].value = <uint32_t> shared.streams_per_connection
        entries[1].settings_id = NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE
        entries[1].value = <uint32_t> shared.stream_window_bytes
        entries[2].settings_id = NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE
        entries[2].value = <uint32_t> shared.header_bytes
        entries[3].settings_id = NO_RFC7540_PRIORITIES
        entries[3].value = 1
        self.check(nghttp2_submit_settings(self.session, NGHTTP2_FLAG_NONE, entries, 4))
        return self.check(nghttp2_session_set_local_window_size(
            self.session, NGHTTP2_FLAG_NONE, 0, <int32_t> shared.connection_window_bytes
        ))

    cdef int check(self, int code) except -1:
        # Every call that can fail for lack of memory; other failures are our own mistakes.
        if code == NGHTTP2_ERR_NOMEM:
            self.spoilt = True
            raise MemoryError
        if code:
            raise AssertionError(f"libnghttp2 refused a call: {code}")
        return 0

    cdef int judged(self, int code) noexcept:
        # `check` inside a callback: what the callback returns.
        if code == 0:
            return 0
        self.failure = MemoryError() if code == NGHTTP2_ERR_NOMEM else AssertionError(
            f"libnghttp2 refused a call: {code}"
        )
        return NGHTTP2_ERR_CALLBACK_FAILURE

    cdef int consume(self, int32_t id, size_t size) except -1:
        # Received bytes are dealt with; id 0: of the connection. A stream may be gone by now.
        cdef int code
        if id:
            code = nghttp2_session_consume_stream(self.session, id, size)
        else:
            code = nghttp2_session_consume_connection(self.session, size)
        return self.check(code) if code == NGHTTP2_ERR_NOMEM else 0

    cdef bint feed(self, bytes data) except -1:
        # False: the connection cannot go on.
        cdef ssize_t taken = nghttp2_session_mem_recv(
            self.session, <const uint8_t *> PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data)
        )
        self.spoilt = self.spoilt or taken == NGHTTP2_ERR_NOMEM or self.failure is not None
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        if taken == NGHTTP2_ERR_NOMEM:
            raise MemoryError
        return taken >= 0

    cdef int pump(self) except -1:
        # Everything that is ready, in one write (or several of WRITE_BYTES).
        cdef const uint8_t *data = NULL
        cdef ssize_t size
        while not self.write_paused and not self.lost:
            size = nghttp2_session_mem_send(self.session, &data)
            self.spoilt = self.spoilt or size < 0
            if self.failure is not None:
                failure, self.failure = self.failure, None
                raise failure
            if size < 0:
                raise MemoryError if size == NGHTTP2_ERR_NOMEM else AssertionError(
                    f"libnghttp2 cannot send: {size}"
                )
            if size > 0:
                self.room_for(size)
                memcpy(PyBytes_AS_STRING(self.out) + self.out_size, data, size)
                self.out_size += size
            if self.full or self.out_size >= WRITE_BYTES:
                self.full = False
                self.flush()
            elif size == 0:
                break
        self.flush()
        self.expected_bytes = 0
        return 0

    cdef int room_for(self, Py_ssize_t size) except -1:
        cdef Py_ssize_t room
        if self.out is None:
            room = max(OUT_ROOM + min(self.expected_bytes, WRITE_BYTES), size)
            self.out = PyBytes_FromStringAndSize(NULL, room)
            self.out_room = room
            self.out_size = 0
        elif self.out_size + size > self.out_room:
            room = max(2 * self.out_room, self.out_size + size)
            self.resize(room)
        return 0

    cdef int resize(self, Py_ssize_t room) except -1:
        # Only this object holds `out`, as _PyBytes_Resize asks for.
        cdef PyObject *data = <PyObject *> self.out
        Py_INCREF(self.out)
        self.out = None
        self.out_room = room
        resize_bytes(&data, room)
        self.out = <bytes> data
        Py_DECREF(self.out)
        return 0

    cdef int flush(self) except -1:
        if self.out is None or self.out_size == 0:
            return 0
        if self.out_size < self.out_room:
            self.resize(self.out_size)
        data, self.out = self.out, None
        self.out_size = self.out_room = 0
        self.shared.bytes_out += PyBytes_GET_SIZE(data)
        return self.written(data)


def _fail_allocation_after(long count):
    cdef long left = wl_alloc_countdown
    wl_alloc_fail_after(count)
    return left
