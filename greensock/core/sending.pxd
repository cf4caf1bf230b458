cimport cython

from greensock.core._sys cimport getcurrent, monotonic, write
from greensock.core.lifecycle cimport Lifecycle
from greensock.core.poller cimport Poller

cdef object INHERIT, OPEN


cdef class Sending(Lifecycle):
    @cython.locals(sent=Py_ssize_t)
    cpdef send(self, data, close=*, timeout=*)
    @cython.locals(poller=Poller)
    cpdef send_soon(self, data, timeout=*)
