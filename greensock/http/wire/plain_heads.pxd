cimport cython

from greensock.http.wire._scan cimport cut_request


@cython.locals(pairs=list, index=dict, is_ordinary=bint, found=tuple)
cpdef tuple lex_plain_fields(list lines)

@cython.locals(cut=tuple, found=tuple, methods=dict)
cpdef tuple read_plain_head(bytes data, Py_ssize_t end, Py_ssize_t max_target)
