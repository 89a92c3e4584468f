"""Sockets under one epoll descriptor of our own. See poll.pxd for the contract.

Cost: one recv or send a message and hop; what remains of epoll is shared by the sockets of a batch.
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memset

import os


cdef extern from "alloc.h" nogil:
    void *wl_malloc(size_t size_bytes)
    void wl_free(void *block)
    void wl_alloc_fail_after(long n)

cdef extern from "sys/epoll.h" nogil:
    uint32_t EPOLLIN, EPOLLOUT, EPOLLRDHUP, EPOLLHUP, EPOLLERR, EPOLLET
    int EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CLOEXEC
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event *event)
    int epoll_wait(int epfd, epoll_event *events, int most, int timeout_ms)

cdef extern from "sys/uio.h" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len

cdef extern from "sys/socket.h" nogil:
    struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen
    int MSG_NOSIGNAL, SHUT_WR
    ssize_t recv(int fd, void *data, size_t size, int flags)
    ssize_t send(int fd, const void *data, size_t size, int flags)
    ssize_t sendmsg(int fd, const msghdr *message, int flags)
    int shutdown(int fd, int how)

cdef extern from "unistd.h" nogil:
    int close(int fd)

cdef enum:
    EVENTS = 128        # sockets of one wake-up
    PIECES = 16         # waiting pieces of one write


cdef class Poller:
    """All plain connections of one event loop. Raises OSError, MemoryError."""

    def __cinit__(self, loop):
        self.epfd = -1
        self.loop = loop
        self.conns = set()
        self.again = []
        self.ended = []
        self.scratch = <uint8_t *>wl_malloc(SCRATCH)
        self.events = <epoll_event *>wl_malloc(EVENTS * sizeof(epoll_event))
        if self.scratch == NULL or self.events == NULL:
            raise MemoryError
        self.epfd = epoll_create1(EPOLL_CLOEXEC)
        if self.epfd < 0:
            raise OSError(errno, os.strerror(errno))
        loop.add_reader(self.epfd, self._ready)

    def __dealloc__(self):
        if self.epfd >= 0:
            close(self.epfd)
        wl_free(self.scratch)
        wl_free(self.events)

    def __len__(self):
        return len(self.conns)

    def close(self):
        """Stop watching. Connections that are left are cut."""
        if self.epfd < 0:
            return
        for conn in list(self.conns):
            conn.abort()
        self._turn()
        self.loop.remove_reader(self.epfd)
        close(self.epfd)
        self.epfd = -1

    cdef void plan_turn(self):
        if not self.turn_due:
            self.turn_due = True
            self.loop.call_soon(self._turn)

    def _ready(self):
        cdef int at
        cdef Conn conn
        cdef int count = epoll_wait(self.epfd, self.events, EVENTS, 0)
        for at in range(count):
            # Alive: only `_turn` takes connections out of `conns`.
            conn = <Conn>self.events[at].data.ptr
            self.serve(conn, self.events[at].events)

    def _turn(self):
        cdef Conn conn
        cdef list again = self.again
        cdef list ended = self.ended
        self.turn_due = False
        self.again, self.ended = [], []
        for conn in again:
            self.serve(conn, 0)
        for conn, error in ended:
            try:
                conn.peer.connection_lost(error)
            except Exception as crash:
                conn._report(crash)
            finally:
                # By hand: a copy of the descriptor in a forked child would keep it registered.
                epoll_ctl(self.epfd, EPOLL_CTL_DEL, conn.fd, NULL)
                conn.fd = -1
                conn.sock.close()
                conn.peer.conn = None
                conn.peer = None
                self.conns.discard(conn)

    cdef int serve(self, Conn conn, uint32_t events) except -1:
        if conn.over:
            return 0
        try:
            if events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR):
                conn.hung_up = True
            if events & EPOLLOUT and conn.out_size:
                conn.flush()
            if events == 0 or events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR):
                if conn.reading:
                    conn.look()
                else:
                    conn.missed = True
        except Exception as error:
            conn._report(error)
            conn.abort()
        return 0


cdef class Peer:
    """What a connection drives: asyncio's Protocol methods, or the two calls of poll.pxd."""

    cdef uint8_t *room(self, size_t *size) except NULL:
        # Where to read to, and how much. The bytes are there until the next read of any peer.
        size[0] = SCRATCH
        return self.conn.poller.scratch

    cdef int filled(self, size_t size) except -1:
        # So many bytes were read into the last room.
        self.data_received(PyBytes_FromStringAndSize(<char *>self.conn.poller.scratch, size))
        return 0

    def connection_made(self, transport):
        """As asyncio's, and so are the others; called from the constructor of the connection."""

    def connection_lost(self, exc):
        pass

    def data_received(self, data):
        raise NotImplementedError

    def eof_received(self):
        return None

    def pause_writing(self):
        pass

    def resume_writing(self):
        pass


cdef class Conn:
    """One connected, non-blocking socket, with the methods of asyncio's transports.

    Takes the socket over. write_buffer: bytes that may wait before the peer is told to pause.
    Raises OSError when it cannot be watched; the socket is then still the caller's.
    """

    def __init__(self, Poller poller not None, sock, Peer peer not None, size_t write_buffer=65536):
        cdef epoll_event event
        self.poller = poller
        self.sock = sock
        self.peer = peer
        self.fd = sock.fileno()
        self.out = []
        self.reading = True
        self.set_write_buffer_limits(write_buffer)
        memset(&event, 0, sizeof(event))
        event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET
        event.data.ptr = <void *>self
        if epoll_ctl(poller.epfd, EPOLL_CTL_ADD, self.fd, &event):
            raise OSError(errno, os.strerror(errno))
        poller.conns.add(self)
        peer.conn = self
        peer.connection_made(self)

    def _report(self, error):
        self.poller.loop.call_exception_handler(
            {"message": "a connection's peer failed", "exception": error, "transport": self}
        )

    # Reading

    cdef int look(self) except -1:
        cdef size_t size = 0
        cdef uint8_t *room = self.peer.room(&size)
        cdef ssize_t count = recv(self.fd, room, size, 0)
        if count < 0:
            if errno == EINTR:
                self.poller.again.append(self)
                self.poller.plan_turn()
                return 0
            return 0 if errno == EAGAIN else self.fail(errno)
        if count == 0:
            self.reading = False
            if not self.peer.eof_received():
                self.close()
            return 0
        if <size_t>count == size or self.hung_up:
            # There may be more, for which no event will come: the others have their turn first.
            self.poller.again.append(self)
            self.poller.plan_turn()
        return self.peer.filled(count)

    def pause_reading(self):
        """Leave what arrives in the kernel."""
        self.reading = False

    def resume_reading(self):
        """The opposite; nothing is read from inside this call."""
        if not self.reading and not self.over and not self.ending:
            self.reading = True
            if self.missed:  # edge-triggered: the kernel does not tell again
                self.missed = False
                self.poller.again.append(self)
                self.poller.plan_turn()

    # Writing

    cdef int keep(self, const uint8_t *data, size_t size) except -1:
        if size:
            self.out.append(PyBytes_FromStringAndSize(<const char *>data, size))
            self.out_size += size
        return 0

    cdef int send(self, const uint8_t *a, size_t a_size, const uint8_t *b, size_t b_size) except -1:
        cdef iovec parts[2]
        cdef msghdr message
        cdef ssize_t count = 0
        cdef size_t taken
        if self.over or self.ending:
            return 0
        if self.out_size == 0:
            if b_size == 0:
                count = send(self.fd, a, a_size, MSG_NOSIGNAL)
            else:
                parts[0].iov_base, parts[0].iov_len = <void *>a, a_size
                parts[1].iov_base, parts[1].iov_len = <void *>b, b_size
                memset(&message, 0, sizeof(message))
                message.msg_iov, message.msg_iovlen = parts, 2
                count = sendmsg(self.fd, &message, MSG_NOSIGNAL)
            if count < 0:
                if errno != EAGAIN and errno != EINTR:
                    return self.fail(errno)
                count = 0
            taken = <size_t>count
            if taken == a_size + b_size:
                return 0
            if taken >= a_size:
                b, b_size, a_size = b + (taken - a_size), a_size + b_size - taken, 0
            else:
                a, a_size = a + taken, a_size - taken
        self.keep(a, a_size)
        self.keep(b, b_size)
        if self.out_size > self.high and not self.stalled:
            self.stalled = True
            self.peer.pause_writing()
        return 0

    cdef int flush(self) except -1:
        # The kernel may take more of `out`.
        cdef iovec parts[PIECES]
        cdef msghdr message
        cdef ssize_t count
        cdef size_t taken, size
        cdef bytes piece
        cdef int used = 0
        for piece in self.out[:PIECES]:
            parts[used].iov_base = PyBytes_AS_STRING(piece)
            parts[used].iov_len = PyBytes_GET_SIZE(piece)
            used += 1
        parts[0].iov_base = <char *>parts[0].iov_base + self.out_at
        parts[0].iov_len -= self.out_at
        memset(&message, 0, sizeof(message))
        message.msg_iov, message.msg_iovlen = parts, used
        count = sendmsg(self.fd, &message, MSG_NOSIGNAL)
        if count < 0:
            if errno == EAGAIN or errno == EINTR:
                return 0
            return self.fail(errno)
        taken = <size_t>count
        self.out_size -= taken
        used = 0
        taken += self.out_at
        for piece in self.out:
            size = PyBytes_GET_SIZE(piece)
            if taken < size:
                break
            taken -= size
            used += 1
        del self.out[:used]
        self.out_at = taken
        return self.drained()

    cdef int drained(self) except -1:
        if self.out_size == 0:
            if self.ending:
                return self.end(None)
            if self.half:
                shutdown(self.fd, SHUT_WR)
        if self.stalled and self.out_size <= self.low:
            self.stalled = False
            self.peer.resume_writing()
        return 0

    def write(self, data):
        """Send, or keep what does not go out now. Ignored once the connection ends."""
        cdef bytes raw = data if type(data) is bytes else bytes(data)
        if PyBytes_GET_SIZE(raw):
            self.send(<uint8_t *>PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw), NULL, 0)

    def writelines(self, parts):
        """Two parts go out together, more are joined."""
        cdef bytes first, second
        if len(parts) != 2 or type(parts[0]) is not bytes or type(parts[1]) is not bytes:
            self.write(b"".join(parts))
            return
        first, second = parts
        self.send(
            <uint8_t *>PyBytes_AS_STRING(first), PyBytes_GET_SIZE(first),
            <uint8_t *>PyBytes_AS_STRING(second), PyBytes_GET_SIZE(second),
        )

    def set_write_buffer_limits(self, size_t high):
        """The peer pauses above `high` waiting bytes and goes on at a quarter of it."""
        self.high = high
        self.low = high // 4

    def get_write_buffer_size(self):
        return self.out_size

    # Ending

    cdef int end(self, object error) except -1:
        if not self.over:
            self.over = True
            self.reading = False
            self.out.clear()
            self.out_size = self.out_at = 0
            self.poller.ended.append((self, error))
            self.poller.plan_turn()
        return 0

    cdef int fail(self, int number) except -1:
        return self.end(OSError(number, os.strerror(number)))

    def close(self):
        """End once all is written; nothing is read any more."""
        self.reading = False
        self.ending = True
        if self.out_size == 0:
            self.end(None)

    def abort(self):
        """End now; what waits is dropped."""
        self.end(None)

    def is_closing(self):
        """Has it ended, or will it?"""
        return self.over or self.ending

    def can_write_eof(self):
        return True

    def write_eof(self):
        """End our side once all is written; the other may go on."""
        if not self.half and not self.over:
            self.half = True
            if self.out_size == 0:
                shutdown(self.fd, SHUT_WR)

    def get_extra_info(self, name, default=None):
        """"socket" alone is known."""
        return self.sock if name == "socket" else default


def _fail_allocation_after(long count):
    wl_alloc_fail_after(count)
