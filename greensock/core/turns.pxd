cimport cython

from greensock.core._sys cimport greenlet, monotonic, read
from greensock.core.connection cimport Connection
from greensock.core.workers cimport Turn

cdef object OPEN


@cython.locals(conn=Connection, count=Py_ssize_t, size=Py_ssize_t, worker=greenlet, data=bytes, is_read=bint)
cpdef _drain_upcalls(turns, ready, Turn turn)
