"""The compiled halves of the proxy's connections. See hop.pxd for the contract."""

from cpython.bytes cimport PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t
from libc.string cimport memcpy

from warmlane._core.http_head cimport RequestHead, request_of
from warmlane._core.leads cimport Leads
from warmlane._core.poll cimport SCRATCH, Peer

from warmlane._core.http_head import HeadError


cdef extern from "alloc.h" nogil:
    void *wl_malloc(size_t size_bytes)
    void wl_free(void *block)
    void wl_alloc_fail_after(long n)

cdef extern from "sys/mman.h" nogil:
    int MADV_HUGEPAGE
    int madvise(void *begin, size_t size, int advice)

cdef extern from "string.h" nogil:
    void *memmem(const void *text, size_t text_size, const void *what, size_t what_size)

cdef enum:
    SLAB = 2097152          # one huge page
    # A body may take head_s plus one second per this many bytes (as downstream's).
    MIN_BYTES_PER_S = 16384


cdef class Shared(Leads):
    """What all connections share; see hop.pxd."""

    def __dealloc__(self):
        while self.slabs:
            self.slabs -= 1
            wl_free(self.slab[self.slabs])

    def adopt(self, course):
        """Make the exchange that goes on with a course."""
        raise NotImplementedError

    cdef uint8_t *add_slab(self) except NULL:
        # On a huge page where the system gives one when asked: what kernel and core copy through
        # these buffers then needs one entry of the address cache instead of one per 4 KB. What
        # lies outside the aligned part is never touched.
        cdef void *block = wl_malloc(2 * SLAB)
        if block == NULL:
            raise MemoryError
        cdef uint8_t *begin = <uint8_t *>((<size_t>block + SLAB - 1) & ~<size_t>(SLAB - 1))
        madvise(begin, SLAB, MADV_HUGEPAGE)  # advice: refused means small pages
        self.slab[self.slabs], self.slab_at[self.slabs] = block, begin
        self.slabs += 1
        return begin

    cdef uint8_t *take_room(self) except NULL:
        cdef uint8_t *room
        cdef int at
        if self.spares == 0 and self.slabs < SLABS:
            room = self.add_slab()
            for at in range(SLAB // ROOM):
                self.spare[self.spares] = room + at * ROOM
                self.spares += 1
        if self.spares:
            self.spares -= 1
            return self.spare[self.spares]
        room = <uint8_t *>wl_malloc(ROOM)
        if room == NULL:
            raise MemoryError
        return room

    cdef void give_room(self, uint8_t *room) noexcept:
        cdef int at
        for at in range(self.slabs):
            if self.slab_at[at] <= room < self.slab_at[at] + SLAB:
                self.spare[self.spares] = room  # the last one out is the warmest
                self.spares += 1
                return
        wl_free(room)


cdef class Course:
    """One plain request under way; see straight.pxd for the one there is."""

    cdef int begin(
        self, Front front, RequestHead head, int kind, const uint8_t *body, size_t size
    ) except -1:
        raise NotImplementedError

    cdef int answer(self, Back back, const uint8_t *data, size_t size) except -1:
        raise NotImplementedError

    def leave(self):
        """The exchange that goes on instead."""
        raise NotImplementedError


cdef class Front(Peer):
    """The reading half of a client's connection. Between requests and for plain ones it works
    here; everything else reaches `data_received`."""

    def __cinit__(self, *args, **kwargs):
        self._tail = b""

    def __dealloc__(self):
        # `release` needs `shared`, which may be gone already.
        if self.buffer != NULL:
            wl_free(self.buffer - AHEAD)

    def equip(self, Shared shared not None, Course course):
        """What it works with. course: None, all requests go to the Python half."""
        self.shared = shared
        self.course = course

    @property
    def partial(self):
        """Is a part of a request in the buffer?"""
        return self.head is not None and self.exchange is None

    def forget_partial(self):
        """That request will not be answered any more."""
        if self.exchange is None:
            self.uncount()
            self.release()

    def _next(self, close=False):
        raise NotImplementedError

    cdef uint8_t *room(self, size_t *size) except NULL:
        self.own = (
            self.exchange is None and self._body is None and not PyBytes_GET_SIZE(self._tail)
            and not self._ended and self.course is not None and self.shared.plain
        )
        if not self.own:
            size[0] = SCRATCH
            return self.conn.poller.scratch
        if self.buffer == NULL:
            self.buffer = self.shared.take_room() + AHEAD
            self.buffer_room = ROOM - AHEAD
            self.got = 0
        size[0] = self.buffer_room - self.got
        return self.buffer + self.got

    cdef int filled(self, size_t size) except -1:
        if not self.own:
            self.data_received(
                PyBytes_FromStringAndSize(<char *>self.conn.poller.scratch, size)
            )
            return 0
        self.got += size
        if self.head is None and not self.open_request():
            return self.hand_over()
        if self.got < self.need:
            return self.wait()
        return self.start_course()

    cdef bint open_request(self) except -1:
        # Read the head in the buffer. False: it is not whole, or not for a course.
        cdef Shared shared = self.shared
        cdef RequestHead head
        cdef const uint8_t *end
        cdef size_t most = min(self.got, <size_t>shared.most_head)
        if shared.draining or self.closing:
            return False
        if shared.shadow is not None and not shared.shadow.always:
            return False  # another may have to decide
        end = <const uint8_t *>memmem(self.buffer, most, <const char *>b"\r\n\r\n", 4)
        if end == NULL:
            return False
        self.start = end + 4 - self.buffer
        try:
            head = request_of(PyBytes_FromStringAndSize(<char *>self.buffer, self.start))
        except HeadError:  # the Python half will say it
            return False
        kind = shared.paths.get(head.path)
        if (
            kind is None or head.method != b"POST" or head.chunked or head.expect or head.close
            or not 0 < head.length <= min(shared.most_body, <Py_ssize_t>MOST_BODY)
        ):
            return False
        if b"content-encoding" in head.headers or b"x-warmlane-debug-key" in head.headers:
            return False
        if shared.guard is not None and not shared.guard(head.headers):
            return False
        content = head.headers.get(b"content-type")
        if content is not None and content != b"application/json":
            if content[:10].lower() == b"multipart/":
                return False
        self.kind = kind
        self.need = self.start + head.length
        self.head = head
        return True

    cdef int wait(self) except -1:
        # A part of the body is here: count it, and have room for more.
        cdef Shared shared = self.shared
        cdef Py_ssize_t grown = self.got - self.start - self.counted
        cdef size_t room
        cdef uint8_t *larger
        if self.counted == 0:
            self.deadline = shared.now + shared.head_s
        self.deadline += <double>grown / MIN_BYTES_PER_S
        self.counted += grown
        shared.buffered_bytes += grown
        if shared.buffered_bytes > shared.most_buffered:
            return self.hand_over()
        if self.got == self.buffer_room:
            # Twice what has arrived: a length that is only announced takes no memory.
            room = min(2 * self.buffer_room, self.need + 1)
            larger = <uint8_t *>wl_malloc(AHEAD + room)
            if larger == NULL:
                raise MemoryError
            larger += AHEAD
            memcpy(larger, self.buffer, self.got)
            shared.give_room(self.buffer - AHEAD)
            self.buffer, self.buffer_room = larger, room
        return 0

    cdef int start_course(self) except -1:
        cdef Shared shared = self.shared
        cdef Course course = self.course
        cdef RequestHead head = self.head
        cdef int begun
        self.uncount()
        self.debug = False
        if shared.inflight >= shared.most_inflight:
            return self.hand_over()
        self._tail = PyBytes_FromStringAndSize(
            <char *>self.buffer + self.need, self.got - self.need
        ) if self.got > self.need else b""
        self.exchange = course
        shared.inflight += 1
        try:
            begun = course.begin(
                self, head, self.kind, self.buffer + self.start, self.need - self.start
            )
        except Exception:
            if self.exchange is not course:
                raise
            begun = 0  # the Python half meets the same, and can tell the client
        if not begun:
            self.exchange = None
            shared.inflight -= 1
            self._tail = b""
            return self.hand_over()
        return 0

    cdef int hand_over(self) except -1:
        # All that is in the buffer to the Python half.
        cdef bytes data = PyBytes_FromStringAndSize(<char *>self.buffer, self.got)
        self.uncount()
        self.release()
        self.data_received(data)
        return 0

    cdef const uint8_t *join(self, const uint8_t *head, size_t size) noexcept:
        # Another head right before the body, over the one that came; NULL: no room for it.
        if size > AHEAD + self.start:
            return NULL
        memcpy(self.buffer + self.start - size, head, size)
        return self.buffer + self.start - size

    cdef int done_plain(self, bint close) except -1:
        # As `downstream.Client.done`.
        cdef Shared shared = self.shared
        self.exchange = None
        shared.inflight -= 1
        self.release()
        if close or self._paused or PyBytes_GET_SIZE(self._tail) or self.closing:
            self._next(close)
        else:
            self.deadline = shared.now + shared.keepalive_s
        return 0

    cdef void uncount(self) noexcept:
        self.shared.buffered_bytes -= self.counted
        self.counted = 0

    cdef void release(self) noexcept:
        self.head = None
        if self.buffer != NULL:
            self.shared.give_room(self.buffer - AHEAD)
            self.buffer = NULL
            self.got = 0


cdef class Back(Peer):
    """The reading half of a connection to a replica: to its course, or to `data_received`."""

    cdef int filled(self, size_t size) except -1:
        if self.course is not None:
            return self.course.answer(self, self.conn.poller.scratch, size)
        self.data_received(PyBytes_FromStringAndSize(<char *>self.conn.poller.scratch, size))
        return 0


cdef class Kept:
    """Connections to one replica between two requests."""

    def __cinit__(self, *args, **kwargs):
        self.idle = []

    cdef Back pop(self, double now):
        cdef list idle = self.idle
        cdef Back back
        while idle:
            back = <Back>idle.pop()
            if back.usable and now - back.idle_since < self._keepalive_s:
                return back
            back.close()
        return None

    cdef int push(self, Back back, double now) except -1:
        if self.closed or len(self.idle) >= self._max_idle:
            back.close()
            return 0
        back.idle_since = now
        self.idle.append(back)
        return 0

    def take(self, double now):
        """The idle connection used last, if it is young enough."""
        return self.pop(now)

    def give(self, Back connection not None, double now):
        """Back after a clean end."""
        self.push(connection, now)


def _fail_allocation_after(long count):
    wl_alloc_fail_after(count)
