cimport cython

from greensock.core._sys cimport getcurrent, monotonic
from greensock.core.workers cimport Workers


cdef class Endpoint:
    cdef public object _poller, _reader, _ready
    cdef public int _fd
    cdef public bint _idle, _readable, _thorough, _writable
    cdef public double _armed


cdef class Poller:
    cdef object __weakref__
    cdef public object _calls, _epoll, _next_pass, _paused, _put_off, _serial, _timer, _watcher, hub, pipes
    cdef public dict endpoints
    cdef public list _deadlines, worker_pools
    cdef public bint _active, _scheduled, is_abandoned
    cdef public double _timer_due, until
    cdef public Py_ssize_t _armed_count

    @cython.locals(endpoint=Endpoint, events=int, data=int)
    cdef _harvest(self)
    cpdef _tell(self, Endpoint endpoint, int events)
    cdef _run_calls(self)
    @cython.locals(pool=Workers)
    cpdef _run_workers(self)
    @cython.locals(pool=Workers)
    cdef bint _is_somebody_ready(self) except -1
