cimport cython

from greensock.core._sys cimport greenlet, monotonic, read
from greensock.core.connection cimport Connection
from greensock.core.lifecycle cimport Lifecycle
from greensock.core.poller cimport Poller
from greensock.core.workers cimport Turn

cdef object CLOSED, OPEN
cdef object _PEER_CLOSED


cdef class Tally:
    cdef public long long accepted, alive, connected, messages, received, sent


@cython.locals(conn=Connection, poller=Poller, tally=Tally)
cpdef serve(turns, fd, family, address)

@cython.locals(conn=Connection, count=Py_ssize_t, size=Py_ssize_t, worker=greenlet, data=bytes, is_read=bint)
cpdef _drain_upcalls(turns, ready, Turn turn)

cpdef _long_turn(turns, Connection conn, bytes data)

@cython.locals(size=Py_ssize_t, each=Py_ssize_t, reads=Py_ssize_t, most=Py_ssize_t, poller=Poller)
cpdef _flood(turns, Connection conn, bytes data)

@cython.locals(poller=Poller, size=Py_ssize_t, budget=Py_ssize_t, most=Py_ssize_t, given=Py_ssize_t, heard=bint, late=bint, more=bint)
cpdef _framed_turn(turns, Connection conn)

@cython.locals(tally=Tally, given=Py_ssize_t)
cdef Py_ssize_t _give_messages(turns, Connection conn, decoder, Py_ssize_t most) except -1

@cython.locals(dropped=dict)
cpdef _end(turns, Connection conn)

cpdef bint count_released(Tally tally, Lifecycle conn) except -1
