cdef class Decoder:
    cdef public object _buffer
    cdef public Py_ssize_t _start
    cdef bytes _cut(self, Py_ssize_t end, Py_ssize_t resume)
    cdef _compact(self)


cdef class _DelimitedDecoder(Decoder):
    cdef public object _framer
    cdef public Py_ssize_t _searched


cdef class _LinesDecoder(_DelimitedDecoder):
    pass


cdef class _FixedSizeDecoder(Decoder):
    cdef public Py_ssize_t _size


cdef class _LengthPrefixedDecoder(Decoder):
    cdef public object _framer
