cimport cython

from greensock.core._sys cimport EPOLLIN, EPOLLOUT, getcurrent, greenlet, monotonic, poll, switch_to, told_events, told_fd
from greensock.core.workers cimport Workers


cdef class Endpoint:
    cdef public object _poller, _reader, _ready
    cdef public int _fd
    cdef public unsigned char _idle, _readable, _thorough, _writable
    cdef public double _armed


cdef class Poller:
    cdef object __weakref__
    cdef public object bios, _calls, _epoll, _next_pass, _paused, _put_off, _serial, _timer, _watcher, hub, pipes
    cdef public dict _corked
    cdef public list _by_fd, _deadlines, worker_pools
    cdef public bint _active, _scheduled, has_newcomers, is_abandoned
    cdef public int _epoll_fd
    cdef public double _corked_last, _corked_since, _gap_at, _timer_due, _uncorked_until, until
    cdef public Py_ssize_t _armed_count, _registered

    cpdef register(self, Endpoint endpoint, interest=*)
    cpdef forget(self, Endpoint endpoint, still_open=*)
    cpdef bint is_registered(self, Endpoint endpoint) except -1
    cpdef queue(self, Endpoint endpoint)
    cpdef schedule(self)
    cpdef _tell(self, Endpoint endpoint, int events)
    @cython.locals(now=double, pause=double, corked=dict, data=bytes, waiting=bytes)
    cpdef bint cork(self, conn, data) except -1
    cdef _run_calls(self)
    @cython.locals(pool=Workers)
    cpdef _run_workers(self)
    @cython.locals(pool=Workers)
    cdef bint _is_somebody_ready(self) except -1


# In the place of the function of that name, which is left out.
cdef inline int harvest(Poller poller) except -1:
    cdef list by_fd = poller._by_fd
    cdef int index, events, fd
    cdef Endpoint endpoint
    for index in range(poll(poller._epoll_fd)):
        fd, events = told_fd(index), told_events(index)
        endpoint = <Endpoint>by_fd[fd]
        if endpoint is None:
            continue
        if events == (EPOLLIN | EPOLLOUT) and endpoint._writable:
            endpoint._readable = True
            reader = endpoint._reader
            if reader is None:
                if endpoint._idle:
                    endpoint._idle = False
                    endpoint._ready(endpoint)
            elif isinstance(reader, greenlet):
                switch_to(reader)
            else:
                reader.switch()
        else:
            poller._tell(endpoint, events)
    return 0
