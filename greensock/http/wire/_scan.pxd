# What the compiled modules take from C in place of scan.py: each does what its namesake there does.
cdef extern from *:
    """
    #ifndef GREENSOCK_SCAN
    #define GREENSOCK_SCAN
    #include <string.h>

    static PyObject *greensock_lines(const char *line, const char *stop) {
        const char *at = line, *found;
        PyObject *lines = PyList_New(0), *piece;
        while (lines != NULL) {
            found = memchr(at, '\\r', stop - at);
            if (found != NULL && (found + 1 == stop || found[1] != '\\n')) {
                at = found + 1;
                continue;
            }
            piece = PyBytes_FromStringAndSize(line, (found == NULL ? stop : found) - line);
            if (piece == NULL || PyList_Append(lines, piece) < 0) Py_CLEAR(lines);
            Py_XDECREF(piece);
            if (found == NULL) break;
            line = at = found + 2;
        }
        return lines;
    }

    static PyObject *greensock_cut_lines(PyObject *data, Py_ssize_t end) {
        return greensock_lines(PyBytes_AS_STRING(data), PyBytes_AS_STRING(data) + end);
    }

    static const char *greensock_end_of_line(const char *at, const char *stop) {
        while ((at = memchr(at, '\\r', stop - at)) != NULL && at + 1 < stop) {
            if (at[1] == '\\n') return at;
            at++;
        }
        return stop;
    }

    /* The bytes of plain_target. */
    static unsigned char greensock_of_target[256];

    static void greensock_make_table(void) {
        static const char others[] = "-._~%!$&'()*+,;=:@/?";
        for (const char *each = others; *each; each++) greensock_of_target[(unsigned char)*each] = 1;
        for (int each = '0'; each <= '9'; each++) greensock_of_target[each] = 1;
        for (int each = 'A'; each <= 'Z'; each++) greensock_of_target[each] = greensock_of_target[each + 32] = 1;
    }

    static PyObject *greensock_cut_request(PyObject *data, Py_ssize_t end, Py_ssize_t max_target) {
        const char *text = PyBytes_AS_STRING(data), *stop = text + end, *line_end, *begin, *at, *version;
        PyObject *lines, *method, *target, *found;
        if (!greensock_of_target['/']) greensock_make_table();
        if (end < 9) Py_RETURN_NONE; /* or less than 0, where what came has no end */
        line_end = greensock_end_of_line(text, stop);
        version = line_end - 9;
        if (version < text || memcmp(version, " HTTP/1.1", 9) != 0) Py_RETURN_NONE;
        begin = memchr(text, ' ', version - text);
        if (begin == NULL || ++begin == version || *begin != '/' || version - begin > max_target) Py_RETURN_NONE;
        for (at = begin; at < version; at++)
            if (!greensock_of_target[(unsigned char)*at]) Py_RETURN_NONE;
        lines = line_end < stop ? greensock_lines(line_end + 2, stop) : PyList_New(0);
        method = PyBytes_FromStringAndSize(text, begin - 1 - text);
        target = PyBytes_FromStringAndSize(begin, version - begin);
        found = lines == NULL || method == NULL || target == NULL ? NULL : PyTuple_Pack(3, method, target, lines);
        Py_XDECREF(lines);
        Py_XDECREF(method);
        Py_XDECREF(target);
        return found;
    }
    #endif
    """
    list greensock_cut_lines(object data, Py_ssize_t end)
    tuple greensock_cut_request(object data, Py_ssize_t end, Py_ssize_t max_target)


cdef inline list cut_lines(bytes data, Py_ssize_t end):
    return greensock_cut_lines(data, end)


cdef inline tuple cut_request(bytes data, Py_ssize_t end, Py_ssize_t max_target):
    return greensock_cut_request(data, end, max_target)
