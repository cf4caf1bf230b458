cimport cython

from greensock.core._sys cimport monotonic, read
from greensock.core.poller cimport Endpoint


cdef class Lifecycle(Endpoint):
    cdef dict __dict__
    cdef object __weakref__
    # Small ones together: an object is a multiple of 16 bytes.
    cdef public unsigned char _clear, _ended, _eof, _family, _fin, _fresh, _plain, _stage
    cdef public int _idle_held, _linger_left
    cdef public long long _idle_moved, _kept, _queued, bytes_received, bytes_sent
    cdef public double _due, _idle_since, _linger_due, _read_deadline
    cdef public object _decoder, _drop_reason, _events, _failure, _flushing, _on_leave, _out, _postponed, _stash
    cdef public object _address, _state, _transport, server
    cdef public object linger_timeout, min_send_rate, recv_timeout, send_timeout
    cdef public Py_ssize_t max_send_queue, recv_size


cdef class _Engine:
    cdef public Lifecycle _connection


cdef class _WakeReader:
    cdef public Lifecycle _connection
