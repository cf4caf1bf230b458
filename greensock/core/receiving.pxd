cimport cython

from greensock.core._sys cimport getcurrent, monotonic, read, switch_to
from greensock.core.sending cimport Sending

cdef object INHERIT, OPEN, TIMED_OUT
cdef double inf


cdef class Receiving(Sending):
    cpdef recv(self, max_bytes=*, timeout=*)
    @cython.locals(count=Py_ssize_t, data=bytes)
    cdef bytes _recv(self, Py_ssize_t size, timeout, double deadline=*)
    @cython.locals(now=double)
    cpdef double _await_input(self, timeout, double deadline) except -1
