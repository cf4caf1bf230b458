cimport cython

from greensock.core._datagrams cimport READS_AT_ONCE, receive_datagrams, send_datagram
from greensock.core._sys cimport greenlet, monotonic
from greensock.core.poller cimport Endpoint
from greensock.core.workers cimport Turn

cdef double inf
cdef Py_ssize_t LONGEST_AT_ONCE


cdef class DatagramSocket(Endpoint):
    cdef public bint _can_segment, _coalesces, _tells_errors
    cdef public int _family
    cdef public double _reads_until
    cdef public Py_ssize_t _queued, _size, max_send_queue
    cdef public long long _bytes_received, _bytes_sent, _dropped_in_kernel, _dropped_unsent, _long_ones, _received, _sent
    cdef public long long _undeliverable_ones
    cdef public object _peer, _queue, _raw, _room, _sock, send_timeout
    cdef public list _batch

    cpdef bint _fetch(self) except -1
    cdef _found_none(self)
    @cython.locals(count=Py_ssize_t)
    cpdef _send_to(self, data, address, timeout)
    @cython.locals(count=Py_ssize_t)
    cpdef _send_nowait(self, data, address)


@cython.locals(endpoint=DatagramSocket, worker=greenlet, batch=list, served=Py_ssize_t, look=Py_ssize_t)
cpdef drain_datagrams(server, ready, Turn turn)
