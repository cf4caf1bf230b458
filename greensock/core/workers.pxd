from greensock.core._sys cimport getcurrent, switch_to


cdef class Turn:
    cdef public object conn, worker


cdef class Workers:
    cdef public object _drain, _ended, _hub, _limit, ready
    cdef public dict _all
    cdef public list _parked
    cdef public Py_ssize_t _max_parked
