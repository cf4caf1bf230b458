cimport cython

from greensock.core._sys cimport getcurrent, monotonic, write
from greensock.core.lifecycle cimport Lifecycle

cdef object INHERIT, OPEN


cdef class Sending(Lifecycle):
    @cython.locals(sent=Py_ssize_t)
    cpdef send(self, data, close=*, timeout=*)
