cimport cython

from greensock.http.wire._scan cimport cut_lines, cut_request


@cython.locals(end=Py_ssize_t, cut=tuple, lines=list, pieces=list, keep=bint, kind=long, methods=dict)
cpdef tuple read_request(bytes data, limits, judged)

@cython.locals(end=Py_ssize_t, lines=list, pieces=list, status=long, dated=bint, reusable=bint, kind=long)
cpdef tuple read_answer(bytes data, limits, judged, str method)
