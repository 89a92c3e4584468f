"""One external processing stream: its state, and the common course of it without the interpreter.

`Course` is the base of `envoy.session.Session`, which knows every order of messages. Taken here:

    full duplex, response level 0 or 1, the default mix, nothing that steers the choice:
    headers, chunks of the body, its last chunk -> choice and body; at level 0 the end
    response headers, response trailers, the end of the stream: the events of its ticket

The rule of the seam: a message is handled here whole, or given to `_receive` of the Python half
with the state untouched; a body that is whole and not for this course is chosen for there
(`_choose_whole`). A pick that meets anything else becomes a decision of the Python half first
(`_adopt`), which then goes on alone. So the Python half is complete without this one, and is its
oracle in the tests.
"""
from warmlane._core.desk cimport Lead, Pick
from warmlane._core.proc_gate cimport Gate, Link
from warmlane._core.proc_wire cimport Received


cdef class Course:
    # The state of a stream; of the Python half where nothing else is said.
    cdef public object status           # None, or (code, text): the stream ends
    cdef readonly Gate _picker
    cdef public list _out               # answers to be taken
    cdef public Received _request_head
    cdef public int _request_mode, _response_mode
    cdef public int _phase              # START .. REFUSED of choice.py
    cdef public list _chunks            # of the body, held until the choice
    cdef public Py_ssize_t _held        # bytes of them
    cdef public bint _trailers          # the request has some
    cdef public bint _observed          # nothing is ever answered
    cdef public list _internal
    cdef public object _wake            # there is output; None: the stream is over
    cdef public object _waiting         # token ids or a load that are awaited
    cdef public list _late              # what came meanwhile
    cdef public object _kind
    cdef public bint _stream            # the client asked for a stream
    cdef public bint _open              # the ticket, where the Python half has it
    cdef public object _decision
    cdef public Py_ssize_t _slot
    cdef public object _way, _ways, _beside, _answer
    cdef public object _asked, _rename  # the client's name of the model; who puts it back
    cdef public int _http_status        # of the engine's answer, 0: none yet
    cdef public double _answered_at
    cdef public long _reads
    cdef bint over                      # `closed` was called
    # The pick of a course, NULL: none is under way.
    cdef Pick *pick
    cdef Lead lead
    cdef Link link
    cdef int kind

    cdef bint take_part(self, Received part) except -1
    cdef bint hold(self, bytes chunk) except -1
    cdef void let_go(self)
    cdef bytes whole(self)
    cdef int kind_of_head(self) except -2
    cdef bint choose(self) except -1
    cdef int answer(self, bytes body) except -1
    cdef bint response_headers(self, Received part) except -1
    cdef bint left_early(self) noexcept
    cdef int end_ticket(self) except -1
    cdef int predict(self, bint end) except -1
    cdef int end_pick(self) except -1
    cdef int forget_pick(self) except -1
    cdef int hand_on(self) except -1
