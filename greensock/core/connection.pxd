from greensock.core.receiving cimport Receiving


cdef class Connection(Receiving):
    pass
