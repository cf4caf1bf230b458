from greensock.core._sys cimport getcurrent, greenlet, switch_to


cdef class Turn:
    cdef public greenlet worker
    cdef public object conn


cdef class Workers:
    cdef public object _drain, _ended, _hub, _limit, ready
    cdef public dict _all
    cdef public list _parked
    cdef public Py_ssize_t _max_parked
