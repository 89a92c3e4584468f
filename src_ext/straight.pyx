"""The way of a plain request through the proxy. See straight.pxd for the contract.

Cost: 5 us of CPU besides the kernel's for 4 KB; a read of a stream 1 us.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t
from libc.string cimport memcmp

from warmlane._core.answer_found cimport Answer
from warmlane._core.chunks cimport AT_TRAILER, ChunkReader, Chunks, Walk, chunk_step, walk_read
from warmlane._core.desk cimport Lead, count_done, free_pick, note_decision
from warmlane._core.hop cimport Back, Course, Front, Kept, Shared
from warmlane._core.http_edit cimport edit_request, edit_response
from warmlane._core.http_head cimport RequestHead, ResponseHead, response_of
from warmlane._core.leads cimport picked_of
from warmlane._core.plain cimport PLAIN_SLACK, Plain, plain_model
from warmlane._core.scan cimport BodyWalk
from warmlane._core.sse cimport AnswerScan
from warmlane._core.upkeep cimport Records, Tally

from warmlane._core.http_head import Framing, HeadError


cdef extern from "string.h" nogil:
    void *memmem(const void *text, size_t text_size, const void *what, size_t what_size)

cdef extern from "time.h" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int CLOCK_MONOTONIC
    int clock_gettime(int clock, timespec *now)

cdef enum:
    ON_STACK = 4096         # heads that are put together without an allocation
    PROGRESS_EVERY = 16     # streamed reads between two reports: decode work changes slowly
    K_EMBEDDINGS = 4        # its answer is not read: numbers that tell nothing

cdef object F_LENGTH = Framing.LENGTH
cdef object F_CHUNKED = Framing.CHUNKED


cdef double monotonic() noexcept:
    # The clock of time.monotonic.
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec + now.tv_nsec * 1e-9


cdef void feed_payload(
    AnswerScan scan, Chunks state, const uint8_t *p, const uint8_t *end
) noexcept:
    cdef const uint8_t *piece = NULL
    cdef size_t size = 0
    while p < end and state.state < AT_TRAILER:
        p = chunk_step(&state, p, end, &piece, &size)
        if size:
            scan.take(piece, piece + size)


cdef inline bint aborted(const Answer *answer) noexcept:
    return answer.finish_size == 5 and memcmp(answer.finish, b"abort", 5) == 0


@cython.final
cdef class Straight(Course):
    """The course of one client's plain requests; see straight.pxd."""

    def __cinit__(self, Shared shared not None):
        self.shared = shared
        self.scan = AnswerScan(0)
        self.held = b""

    def __dealloc__(self):
        free_pick(&self.pick)

    # What the exchange that goes on wants to know

    @property
    def body(self):
        """The request's body, as it arrived."""
        return PyBytes_FromStringAndSize(<const char *>self.body, self.size)

    @property
    def picked(self):
        """What was decided."""
        return picked_of(self.lead, &self.pick, self.back is not None)

    # The request

    cdef int begin(
        self, Front front, RequestHead head, int kind, const uint8_t *body, size_t size
    ) except -1:
        cdef Shared shared = self.shared
        cdef BodyWalk walk
        cdef Plain plain
        cdef Lead lead
        cdef uint8_t *work
        cdef double now
        if not plain_model(&walk, &plain, body, size, kind):
            return 0
        lead = shared.lead_of(&plain)
        if lead is None:
            return 0
        now = monotonic()
        work = shared.work_for(size + PLAIN_SLACK)
        if not lead.desk.read(lead, &walk, &plain, size, kind, work, &self.pick):
            return 0
        if not lead.desk.choose(lead, &plain, kind, now, shared.chance(), &self.pick):
            return 0
        self.front, self.lead, self.head = front, lead, head
        self.kind, self.body, self.size = kind, body, size
        self.total = self.deadline = shared.now + shared.total_s
        shared.plain_requests += 1
        try:
            self.send(now)
        except Exception:
            self.hand_on().crashed()
        return 1

    cdef int send(self, double now) except -1:
        cdef uint8_t out[ON_STACK]
        cdef Py_ssize_t length
        cdef Lead lead = self.lead
        cdef Back back
        cdef Kept link
        cdef const uint8_t *joined
        cdef double deadline
        self.decision_s = monotonic() - now
        note_decision(lead, self.decision_s)
        (<Tally?>lead.side.budget)._requests += 1
        link = self.link = <Kept?>lead.link(self.pick.slots[0])
        length = edit_request(
            self.head, link.host_line, link.extra, self.size, out, ON_STACK
        )
        back = link.pop(now) if length else None
        if back is None or back.conn is None:
            self.hand_on().go_on(back, now)
            return 0
        self.back = back
        back.course = self
        back._silent = back._sent_all = True
        deadline = now + self.shared.first_byte_s
        self.deadline = deadline if deadline < self.total else self.total
        joined = self.front.join(out, length)
        if joined != NULL:  # one piece is cheaper for the kernel than two
            back.conn.send(joined, length + self.size, NULL, 0)
        else:
            back.conn.send(out, length, self.body, self.size)
        return lead.desk.sent(&self.pick)

    # The answer

    cdef int answer(self, Back back, const uint8_t *data, size_t size) except -1:
        back._silent = False
        try:
            self.take_answer(data, size)
        except Exception:
            # A bug of ours must cost one request, not leave its client waiting for ever.
            if self.lead is None:
                raise
            self.hand_on().crashed()
        return 0

    cdef int take_answer(self, const uint8_t *data, size_t size) except -1:
        cdef ResponseHead head
        cdef const uint8_t *end
        cdef size_t start
        if self.response is not None:
            return self.take_events(data, size, 0)
        end = <const uint8_t *>memmem(data, size, <const char *>b"\r\n\r\n", 4)
        if end == NULL:
            return self.hand_on_with(data, size)
        start = end + 4 - data
        try:
            head = response_of(PyBytes_FromStringAndSize(<const char *>data, start), False)
        except HeadError:  # the Python half will say it
            return self.hand_on_with(data, size)
        if head.status == 200 and not head.encoded and self.kind != K_EMBEDDINGS:
            if head.json and head.framing is F_LENGTH and <long long>(size - start) == head.length:
                self.response = head
                return self.take_whole(data, size, start)
            if head.sse and head.framing is F_CHUNKED and not head.http10:
                self.response = head
                self.chunks = ChunkReader()
                self.scan.restart(self.shared.most_text)
                return self.take_events(data, size, start)
        return self.hand_on_with(data, size)

    cdef int take_whole(self, const uint8_t *data, size_t size, size_t start) except -1:
        cdef AnswerScan scan = self.scan
        cdef ResponseHead head = self.response
        cdef bytes out
        cdef double now
        scan.restart(self.shared.most_text)
        scan.take(data + start, data + size)
        if not scan.answer.token and aborted(&scan.answer):
            self.response = None
            return self.hand_on_with(data, size)
        now = monotonic()
        self.lead.desk.first_token(self.lead, &self.pick, now)
        self.let_go(now)
        self.close = self.front.closing
        self.begun = True
        out = edit_response(head, self.close)
        if out is head.raw:
            self.front.conn.send(data, size, NULL, 0)
        else:
            self.front.conn.send(
                <const uint8_t *>PyBytes_AS_STRING(out), PyBytes_GET_SIZE(out), data + start,
                size - start,
            )
        return self.finish(now)

    cdef int take_events(self, const uint8_t *data, size_t size, size_t start) except -1:
        # A read of a stream's body, which begins at `start`. All of it or, without a trace, none.
        cdef AnswerScan scan = self.scan
        cdef Answer before = scan.answer
        cdef Walk walk = walk_read(self.chunks.state, data + start, data + size)
        cdef bint ready
        if size == start:  # the head came alone
            self.held = PyBytes_FromStringAndSize(<const char *>data, size)
            self.deadline = min(self.shared.now + self.shared.hold_s, self.total)
            return 0
        if not walk.whole or not (walk.last or walk.event_end):
            return self.hand_on_with(data, size)
        feed_payload(scan, self.chunks.state, data + start, data + size)
        ready = self.begun or scan.answer.token or scan.answer.finish_size > 0 or walk.last
        if (
            scan.answer.error or aborted(&scan.answer)
            or not ready and PyBytes_GET_SIZE(self.held) + <Py_ssize_t>size > self.shared.most_held
        ):
            # The text's memory may have moved, what it held before is still in it.
            before.text, before.text_room = scan.answer.text, scan.answer.text_room
            scan.answer = before
            return self.hand_on_with(data, size)
        self.chunks.state = walk.state
        if ready:
            return self.relay(data, size, start, walk.last)
        if not PyBytes_GET_SIZE(self.held):
            self.deadline = min(self.shared.now + self.shared.hold_s, self.total)
        self.held += PyBytes_FromStringAndSize(<const char *>data, size)
        return 0

    cdef int relay(self, const uint8_t *data, size_t size, size_t start, bint last) except -1:
        cdef Front front = self.front
        cdef ResponseHead head = self.response
        cdef double now = 0.0
        cdef bytes out, held = self.held
        cdef size_t ahead
        cdef const uint8_t *first
        if last or not self.begun:
            now = monotonic()
        if not self.begun:
            if self.scan.answer.token:
                self.lead.desk.learn_pace(&self.pick, now)
            self.lead.desk.first_token(self.lead, &self.pick, now)
        if last:
            self.let_go(now)
        self.deadline = min(self.shared.now + self.shared.idle_s, self.total)
        if self.begun:
            self.reads += 1
            if self.reads % PROGRESS_EVERY == 0:
                self.lead.desk.ledger.advance(self.pick.ticket, self.scan.answer.documents)
            front.conn.send(data, size, NULL, 0)
        else:
            self.begun = True
            self.close = front.closing
            out = edit_response(head, self.close)
            ahead = PyBytes_GET_SIZE(head.raw)  # of the head, in what was held or in this read
            if PyBytes_GET_SIZE(held):
                first = <const uint8_t *>PyBytes_AS_STRING(held)
                if out is not head.raw:
                    held = out + held[ahead:]
                    first = <const uint8_t *>PyBytes_AS_STRING(held)
                self.held = b""
                front.conn.send(first, PyBytes_GET_SIZE(held), data, size)
            elif out is head.raw:
                front.conn.send(data, size, NULL, 0)
            else:
                first = <const uint8_t *>PyBytes_AS_STRING(out)
                front.conn.send(first, PyBytes_GET_SIZE(out), data + start, size - start)
        return self.finish(now) if last else 0

    cdef int let_go(self, double now) except -1:
        # The replica's connection is not needed any more.
        cdef Back back = self.back
        self.back = back.course = None
        back._used = True
        if not self.response.close and back.conn.out_size == 0 and back.usable:
            self.link.push(back, now)
        else:
            back.close()
        return 0

    cdef int finish(self, double now) except -1:
        cdef Front front = self.front
        cdef Lead lead = self.lead
        cdef bint close = self.close
        cdef Py_ssize_t slot = self.pick.slots[0]
        (<Records?>lead.side.ejector).note_ok(slot)
        if self.scan.answer.error or aborted(&self.scan.answer):
            lead.desk.fail(lead, &self.pick, now)
        else:
            lead.desk.settle(lead, &self.pick, &self.scan.answer, now)
        count_done(lead, slot, self.kind, 200)
        self.clear()
        return front.done_plain(close)

    cdef void clear(self):
        self.front = self.back = self.lead = self.link = self.head = None
        self.response = self.chunks = None
        self.held = b""
        self.begun = self.close = False
        self.reads = 0
        self.body = NULL
        self.size = 0

    # Leaving

    cdef object hand_on(self):
        # The exchange that goes on from here.
        cdef Front front = self.front
        cdef Back back = self.back
        if self.lead is None:
            raise AssertionError("no request is under way")
        self.shared.handed_on += 1
        try:
            exchange = self.shared.adopt(self)
        except BaseException:  # whatever it was: nothing may stay behind
            self.lead.desk.fail(self.lead, &self.pick, 0.0)
            front.exchange = None
            self.shared.inflight -= 1
            front.conn.abort()
            raise
        finally:
            if self.begun:  # the exchange has it now
                self.scan = AnswerScan(0)
            if back is not None:
                back.course = None
            self.clear()
            front.release()
        return exchange

    cdef int hand_on_with(self, const uint8_t *data, size_t size) except -1:
        # It also reads what was held, and the read at hand.
        cdef Back back = self.back
        cdef bytes held = self.held
        self.hand_on()
        back.data_received(held + PyBytes_FromStringAndSize(<const char *>data, size))
        return 0

    def leave(self):
        """The exchange that goes on instead, with all that was held read."""
        cdef Back back = self.back
        cdef bytes held = self.held
        exchange = self.hand_on()
        if PyBytes_GET_SIZE(held):
            back.data_received(held)
        return exchange

    # As an exchange (see straight.pyi)

    def expired(self, double now):
        self.leave().expired(now)

    def cancel(self):
        self.leave().cancel()

    def pause(self):
        if self.back is not None:
            self.back.conn.pause_reading()

    def resume(self):
        if self.back is not None:
            self.back.conn.resume_reading()
