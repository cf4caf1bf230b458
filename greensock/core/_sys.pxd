# What the compiled engine takes straight from C, in place of what its modules import under the same names: each does,
# and raises, what its namesake in syscalls.py, greenlet or time does. The GIL is kept: none of these calls waits.
cdef extern from *:
    """
    #ifndef GREENSOCK_SYS
    #define GREENSOCK_SYS
    #include <arpa/inet.h>
    #include <errno.h>
    #include <netinet/in.h>
    #include <sys/epoll.h>
    #include <sys/socket.h>
    #include <sys/un.h>
    #include <time.h>
    #include <unistd.h>
    #include "greenlet/greenlet.h"

    /* A read goes through a buffer of the thread, so that a short message is one small allocation. Behind a long one
       the next goes straight into its object: that saves a copy where there is much to copy. */
    #define GREENSOCK_BUFFER 65536
    #define GREENSOCK_LONG 16384
    static __thread char greensock_buffer[GREENSOCK_BUFFER];
    static __thread int greensock_was_long;

    static PyObject *greensock_read(int fd, Py_ssize_t size) {
        PyObject *data = NULL;
        char *place = greensock_buffer;
        ssize_t count;
        if (size > GREENSOCK_BUFFER || greensock_was_long) {
            data = PyBytes_FromStringAndSize(NULL, size);
            if (data == NULL) return NULL;
            place = PyBytes_AS_STRING(data);
        }
        while ((count = recv(fd, place, size, MSG_DONTWAIT)) < 0) {
            if (errno != EINTR) PyErr_SetFromErrno(PyExc_OSError);
            else if (PyErr_CheckSignals() == 0) continue;
            Py_XDECREF(data);
            return NULL;
        }
        greensock_was_long = count > GREENSOCK_LONG;
        if (data == NULL) return PyBytes_FromStringAndSize(place, count);
        if (count < size) _PyBytes_Resize(&data, count);
        return data;
    }

    /* Of ``bytes`` and nothing else. */
    static Py_ssize_t greensock_write(int fd, PyObject *data) {
        ssize_t count;
        while ((count = send(fd, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), MSG_NOSIGNAL | MSG_DONTWAIT)) < 0) {
            if (errno != EINTR) PyErr_SetFromErrno(PyExc_OSError);
            else if (PyErr_CheckSignals() == 0) continue;
            return -1;
        }
        return count;
    }

    /* The address is packed as by syscalls.pack_address. */
    static PyObject *greensock_accept(PyObject *socket, int listener) {
        struct sockaddr_storage address;
        unsigned char packed[26];
        uint32_t number;
        socklen_t size = sizeof address;
        PyObject *found;
        int fd;
        while ((fd = accept4(listener, (struct sockaddr *)&address, &size, SOCK_NONBLOCK | SOCK_CLOEXEC)) < 0) {
            if (errno == EAGAIN) return Py_NewRef(Py_None);
            if (errno != EINTR) return PyErr_SetFromErrno(PyExc_OSError);
            if (PyErr_CheckSignals()) return NULL;
            size = sizeof address;
        }
        if (address.ss_family == AF_INET) {
            struct sockaddr_in *ipv4 = (struct sockaddr_in *)&address;
            memcpy(packed, &ipv4->sin_addr, 4);
            memcpy(packed + 4, &ipv4->sin_port, 2);
            found = Py_BuildValue("(iy#)", fd, packed, (Py_ssize_t)6);
        } else if (address.ss_family == AF_INET6) {
            struct sockaddr_in6 *ipv6 = (struct sockaddr_in6 *)&address;
            memcpy(packed, &ipv6->sin6_addr, 16);
            memcpy(packed + 16, &ipv6->sin6_port, 2);
            memcpy(packed + 18, &ipv6->sin6_flowinfo, 4);
            number = htonl(ipv6->sin6_scope_id);
            memcpy(packed + 22, &number, 4);
            found = Py_BuildValue("(iy#)", fd, packed, (Py_ssize_t)26);
        } else {
            /* A path, an abstract name (bytes, the first of which is 0), or nothing: most often. */
            char *name = ((struct sockaddr_un *)&address)->sun_path;
            Py_ssize_t length = (Py_ssize_t)size - (Py_ssize_t)offsetof(struct sockaddr_un, sun_path);
            if (length > 0 && name[0] == 0) found = Py_BuildValue("(iy#)", fd, name, length);
            else {
                PyObject *path = PyUnicode_DecodeFSDefaultAndSize(name, length > 0 ? (Py_ssize_t)strnlen(name, length) : 0);
                found = path == NULL ? NULL : Py_BuildValue("(iN)", fd, path);
            }
        }
        if (found == NULL) close(fd);
        return found;
    }

    static double greensock_monotonic(void) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return now.tv_sec + now.tv_nsec * 1e-9;
    }

    static int greensock_has_greenlets(void) {
        if (_PyGreenlet_API == NULL) PyGreenlet_Import();
        return _PyGreenlet_API != NULL;
    }
    static PyObject *greensock_switch_to(PyObject *other) {
        if (!greensock_has_greenlets()) return NULL;
        return PyGreenlet_Switch((PyGreenlet *)other, NULL, NULL);
    }
    static PyObject *greensock_getcurrent(void) {
        return greensock_has_greenlets() ? (PyObject *)PyGreenlet_GetCurrent() : NULL;
    }

    /* Of the running greenlet. */
    static PyObject *greensock_context(void) {
        PyObject *context = PyThreadState_Get()->context;
        return Py_NewRef(context == NULL ? Py_None : context);
    }

    /* What one epoll_wait told; of a thread, as a loop over it may switch to greenlets, and none of them comes back here. */
    #define GREENSOCK_EVENTS 256
    static __thread struct epoll_event greensock_events[GREENSOCK_EVENTS];
    #define greensock_told_fd(index) (greensock_events[index].data.fd)
    #define greensock_told_events(index) ((int)greensock_events[index].events)
    static int greensock_poll(int epoll) {
        int count = epoll_wait(epoll, greensock_events, GREENSOCK_EVENTS, 0);
        if (count >= 0) return count;
        if (errno != EINTR) PyErr_SetFromErrno(PyExc_OSError);
        else if (PyErr_CheckSignals() == 0) return 0;
        return -1;
    }
    #endif
    """
    bytes read "greensock_read"(int fd, Py_ssize_t size)
    Py_ssize_t write "greensock_write"(int fd, bytes data) except -1
    object accept "greensock_accept"(object listener, int fd)
    double monotonic "greensock_monotonic"()
    object switch_to "greensock_switch_to"(object other)
    object getcurrent "greensock_getcurrent"()
    object running_context "greensock_context"()
    int poll "greensock_poll"(int epoll) except -1
    int told_fd "greensock_told_fd"(int index)
    int told_events "greensock_told_events"(int index)
    enum:
        EPOLLIN
        EPOLLOUT

cdef extern from "greenlet/greenlet.h":
    ctypedef class greenlet.greenlet [object PyGreenlet]:
        @property
        cdef inline object gr_context(self):
            return running_context()
