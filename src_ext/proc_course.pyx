"""The common course of an external processing stream. See proc_course.pxd for the contract.

Cost: 4 us a request of 4 KB at level 0, of which the decision is 2; 1 us more at level 1.
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t
from libc.string cimport memcmp

from warmlane._core.desk cimport Lead, Pick, count_done, free_pick, note_decision
from warmlane._core.leads cimport picked_of
from warmlane._core.plain cimport PLAIN_SLACK, Plain, plain_model
from warmlane._core.proc_answer cimport add_pieces, make_answer
from warmlane._core.proc_gate cimport Gate, Link
from warmlane._core.proc_wire cimport Received, read_message
from warmlane._core.scan cimport BodyWalk

from warmlane._core.proc_wire import WireError


cdef extern from "alloc.h" nogil:
    void wl_free(void *block)

cdef extern from "time.h" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int CLOCK_MONOTONIC
    int clock_gettime(int clock, timespec *now)

cdef enum:  # phases of choice.py
    START, BODY, WAITING, CHOSEN, REFUSED

cdef enum:  # kinds of messages, see proc_wire
    REQUEST_HEADERS = 2
    RESPONSE_HEADERS = 3
    REQUEST_BODY = 4
    RESPONSE_TRAILERS = 7

cdef enum:
    FULL_DUPLEX = 4
    MOST_BODY = 1048576     # larger bodies go the other way
    OTHER = 5               # kind of a request without a prompt

# A stream of events takes longer; a gateway that sends no response trailers leaves at once.
cdef double EARLY_S = 0.02
cdef bytes NOTHING = b""
cdef bytes GO_ON_HEADERS = make_answer(RESPONSE_HEADERS, NOTHING, -1, NOTHING, None, NOTHING)
cdef bytes GO_ON_TRAILERS = make_answer(RESPONSE_TRAILERS, NOTHING, -1, NOTHING, None, NOTHING)
cdef tuple OK = (0, "")
# How a stream without an open ticket ended, by the phase of its request half.
cdef tuple RESET = ("reset",)
cdef tuple DONE = ("done",)
cdef tuple FAILED = ("error",)
cdef tuple ENDS = (RESET, RESET, RESET, DONE, ("refused",))


cdef double monotonic() noexcept:
    # The clock of time.monotonic.
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec + now.tv_nsec * 1e-9


cdef class Course:
    """State of a stream, and its common course; see proc_course.pxd."""

    def __cinit__(self, Gate picker not None, wake):
        self._picker = picker
        self._wake = wake
        self._kind = picker.unknown_kind
        self._out = []
        self._chunks = []
        self._request_mode = self._response_mode = FULL_DUPLEX
        self._slot = -1
        picker.open += 1

    def __dealloc__(self):
        # A stream that nobody closed: its ticket ends by age.
        if self.pick != NULL:
            free_pick(self.pick)
            wl_free(self.pick)

    # For the class above

    def _receive(self, part):
        raise NotImplementedError

    def _choose_whole(self):
        raise NotImplementedError

    def _unreadable(self, error):
        raise NotImplementedError

    def _crashed(self):
        raise NotImplementedError

    def _adopt(self, picked, kind):
        raise NotImplementedError

    def _predict_end(self):
        raise NotImplementedError

    def _ended(self):
        raise NotImplementedError

    # What a transport calls

    def receive(self, bytes message not None):
        """One whole message of the gateway's."""
        if self.status is not None:
            return
        try:
            part = read_message(message, self._picker.wanted)
        except WireError as error:
            self._unreadable(error)
            return
        try:
            if not self.take_part(part):
                if self.pick != NULL:
                    self.hand_on()
                self._receive(part)
        except Exception:  # one stream fails, the server goes on; told with its trace
            self._crashed()

    def take(self):
        """Messages to send now."""
        cdef list out = self._out
        if out:
            self._out = []
        return out

    @property
    def held_bytes(self):
        """Of the request's body, kept until the choice: what a transport charges the stream for."""
        return self._held

    def half_closed(self):
        """Nothing more will come: the stream ends, and with it what is open."""
        if self.status is None:
            self.status = OK

    def closed(self):
        """The stream is gone."""
        cdef tuple end
        cdef dict ends = self._picker.ends
        if self.over:
            return
        self.over = True
        self._wake = None
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.cancel()
        self._picker.open -= 1
        if self._held:
            self.let_go()
        if self.pick != NULL or self._open:
            end = DONE if self._http_status else RESET
            self.end_ticket()
        elif self.status is not None and (<tuple>self.status)[0] != 0:
            end = FAILED
        else:
            end = ENDS[self._phase]
        ends[end] = ends.get(end, 0) + 1

    cdef int end_ticket(self) except -1:
        # The stream is gone and its ticket open.
        if self.left_early():
            try:
                if self.pick == NULL:
                    self._predict_end()
                else:
                    self.predict(True)
                return 0
            except MemoryError:  # then it ends now
                pass
        if self.pick == NULL:
            self._ended()
            return 0
        return self.end_pick()

    def _let_go(self):
        """Forget the held body."""
        self.let_go()

    cdef void let_go(self):
        self._picker.buffered -= self._held
        self._held = 0
        self._chunks = []

    # The request

    cdef bint take_part(self, Received part) except -1:
        # True: handled. False: the Python half's, nothing happened.
        cdef Gate gate = self._picker
        cdef int mode
        if part.kind == REQUEST_BODY:
            if self._phase != BODY or self._request_mode != FULL_DUPLEX or self._observed:
                return False
            if not self.hold(part.body):
                return False
            if part.end_of_stream and not self.choose():
                self._choose_whole()
            return True
        if part.kind == REQUEST_HEADERS:
            mode = part.request_mode if part.request_mode >= 0 else gate.body_mode
            if (
                self._phase != START or mode != FULL_DUPLEX or part.end_of_stream
                or part.observability
            ):
                return False
            self._phase = BODY
            self._request_head = part
            self._internal = part.internal
            if part.request_mode >= 0:
                self._response_mode = part.response_mode
            return True
        if self.pick == NULL:
            return False
        if part.served and part.served != self.link.address:
            return False
        if part.kind == RESPONSE_HEADERS:
            return self.response_headers(part)
        if part.kind == RESPONSE_TRAILERS:
            self._out.append(GO_ON_TRAILERS)
            self.end_pick()
            return True
        return False

    cdef bint hold(self, bytes chunk) except -1:
        # False: too much, which the Python half counts and answers.
        cdef Gate gate = self._picker
        cdef Py_ssize_t size = PyBytes_GET_SIZE(chunk)
        if self._held + size > gate.body_bytes or gate.buffered + size > gate.buffered_most:
            return False
        self._chunks.append(chunk)
        self._held += size
        gate.buffered += size
        return True

    def _whole(self):
        """The held body. A gateway may end it with an empty chunk: the one before is no copy."""
        return self.whole()

    cdef bytes whole(self):
        cdef list chunks = self._chunks
        cdef Py_ssize_t count = len(chunks)
        if count == 1 or (count == 2 and not PyBytes_GET_SIZE(<bytes>chunks[1])):
            return <bytes>chunks[0]
        return NOTHING.join(chunks)

    cdef int kind_of_head(self) except -2:
        # The kind of a plain request as in scan.pyx, -1 for one that the Python half decides.
        cdef Received head = self._request_head
        cdef bytes method = head.method
        if head.internal is not None or head.subset is not None or self._trailers:
            return -1
        if PyBytes_GET_SIZE(method) != 4 or memcmp(PyBytes_AS_STRING(method), b"POST", 4) != 0:
            return -1
        kind = self._picker.paths.get(head.path)
        if kind is None or b"content-encoding" in head.headers:
            return -1
        content = head.headers.get(b"content-type")
        if content is not None and (<bytes>content)[:10].lower() == b"multipart/":
            return -1
        return kind

    cdef bint choose(self) except -1:
        # Decide and answer. False: not for this course, nothing happened.
        cdef Gate gate = self._picker
        cdef BodyWalk walk
        cdef Plain plain
        cdef Lead lead
        cdef Pick *pick
        cdef uint8_t *work
        cdef bytes body
        cdef double now
        cdef int kind
        if not gate.plain or not 0 < self._held <= MOST_BODY or not gate.shadow.always:
            return False
        kind = self.kind_of_head()
        if kind < 0:
            return False
        body = self.whole()
        if not plain_model(
            &walk, &plain, <const uint8_t *>PyBytes_AS_STRING(body), self._held, kind
        ) or not plain.model_size:
            return False
        lead = gate.lead_of(&plain)
        if lead is None:
            return False
        work = gate.work_for(self._held + PLAIN_SLACK)
        pick = gate.take_pick()
        try:
            now = monotonic()
            if (
                lead.desk.read(lead, &walk, &plain, self._held, kind, work, pick)
                and lead.desk.choose(lead, &plain, kind, now, gate.chance(), pick)
            ):
                self.pick = pick
        finally:
            if self.pick == NULL:
                gate.give_pick(pick)
        if self.pick == NULL:
            return False
        self.lead, self.kind, self._stream = lead, kind, plain.stream
        gate.plain_requests += 1
        note_decision(lead, monotonic() - now)
        lead.desk.sent(pick)
        self.link = <Link?>lead.link(pick.slots[0])
        self.answer(body)
        return True

    cdef int answer(self, bytes body) except -1:
        # As `Session._answer_choice` of a whole body that goes on as it came.
        cdef Link link = self.link
        self._phase = CHOSEN
        self._out.append(make_answer(
            REQUEST_HEADERS, link.endpoint, self._held, link.mutation, None, NOTHING
        ))
        add_pieces(self._out, REQUEST_BODY, body, True)
        self.let_go()
        # Not while a response may come in full duplex, see session.py.
        if self._picker.level == 0 and self._response_mode < FULL_DUPLEX:
            self.predict(True)
            self.status = OK
        return 0

    # The response, and the end of the ticket

    cdef bint response_headers(self, Received part) except -1:
        # As `Reply._on_response_headers`.
        cdef double now = monotonic()
        self._answered_at = now
        self._http_status = part.status
        if part.status >= 500:
            self._picker._failed(self.lead.side, self.pick.slots[0])
        if part.status >= 400 or not self._stream:
            self.lead.desk.first_token(self.lead, self.pick, now)
        else:
            self.predict(False)
        self._out.append(GO_ON_HEADERS)
        if part.end_of_stream:
            self.end_pick()
        return True

    def _left_early(self):
        """Did the gateway end the stream though the answer goes on?

        Envoy keeps the stream to the answer's end where it wants to send response trailers, and
        else ends it after the headers. Only a stream of events can go on from there.
        """
        return self.left_early()

    cdef bint left_early(self) noexcept:
        return (
            self._stream and self._answer is None
            and 0.0 < monotonic() - self._answered_at < EARLY_S
        )

    cdef int predict(self, bint end) except -1:
        # The first token, and with `end` the end that nobody will see.
        self.link.expected.foresee(self.lead, self.pick, monotonic(), end)
        if end:
            count_done(self.lead, self.pick.slots[0], self.kind, self._http_status)
            self.forget_pick()
        return 0

    cdef int end_pick(self) except -1:
        # As `Reply._ended`.
        cdef double now = monotonic()
        cdef Lead lead = self.lead
        cdef int slot = self.pick.slots[0]
        try:
            if 0 < self._http_status < 400:
                lead.desk.settle(lead, self.pick, NULL, now)
            else:
                lead.desk.fail(lead, self.pick, now)
        finally:
            self.forget_pick()
        count_done(lead, slot, self.kind, self._http_status)
        return 0

    cdef int forget_pick(self) except -1:
        self._picker.give_pick(self.pick)
        self.pick = NULL
        self.lead = None
        return 0

    cdef int hand_on(self) except -1:
        # The pick becomes a decision of the Python half.
        cdef object picked = picked_of(self.lead, self.pick, True)
        self._picker.handed_on += 1
        self._adopt(picked, self.kind)
        return self.forget_pick()
