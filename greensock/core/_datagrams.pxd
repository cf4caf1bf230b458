# What the compiled engine takes straight from C for datagrams, as _sys.pxd has it for connections: each does, and
# raises, what its namesake in datagram_calls.py does. The GIL is kept: none of these calls waits.
cdef extern from *:
    """
    #ifndef GREENSOCK_DATAGRAMS
    #define GREENSOCK_DATAGRAMS
    #include <arpa/inet.h>
    #include <errno.h>
    #include <netinet/in.h>
    #include <stddef.h>
    #include <string.h>
    #include <sys/socket.h>
    #include <sys/un.h>

    /* So many reads at once, each into a slot of its own; of longer ones (LONGEST_AT_ONCE) one. Of a slot only what came
       is ever touched. */
    #define GREENSOCK_READS 16
    #define GREENSOCK_SLOT 65536
    #define GREENSOCK_GRO 104 /* UDP_GRO */
    static char greensock_slots[GREENSOCK_READS * GREENSOCK_SLOT];
    static int greensock_slots_taken; /* by a call that is cut short: to make an object may run a finalizer */

    typedef union {
        struct sockaddr any;
        struct sockaddr_in ipv4;
        struct sockaddr_in6 ipv6;
        struct sockaddr_un path;
        struct sockaddr_storage most;
    } greensock_place;

    /* The addresses seen last, by the port: most datagrams come from a peer that is known, and most answers go there. */
    #define GREENSOCK_KNOWN 256
    typedef struct {
        struct sockaddr_in6 place;
        socklen_t length;
        PyObject *told;
    } greensock_known;
    static greensock_known greensock_peers[GREENSOCK_KNOWN];

    /* What of it tells one address from another. */
    #define greensock_significant(place) \\
        ((place)->any.sa_family == AF_INET ? offsetof(struct sockaddr_in, sin_zero) : sizeof(struct sockaddr_in6))

    static PyObject *greensock_told(greensock_place *place, socklen_t size) {
        char text[INET6_ADDRSTRLEN];
        if (size == 0) return Py_NewRef(Py_None); /* a Unix socket without a name: nothing was written to the place */
        if (place->any.sa_family == AF_INET || place->any.sa_family == AF_INET6) {
            unsigned port = ntohs(place->ipv4.sin_port); /* at the same place in both */
            greensock_known *known = &greensock_peers[port % GREENSOCK_KNOWN];
            size_t length = greensock_significant(place);
            PyObject *told, *before;
            if (known->told != NULL && known->length == size && !memcmp(&known->place, place, length))
                return Py_NewRef(known->told);
            if (place->any.sa_family == AF_INET) {
                inet_ntop(AF_INET, &place->ipv4.sin_addr, text, sizeof text);
                told = Py_BuildValue("(sI)", text, port);
            } else {
                inet_ntop(AF_INET6, &place->ipv6.sin6_addr, text, sizeof text);
                told = Py_BuildValue("(sIII)", text, port, (unsigned)ntohl(place->ipv6.sin6_flowinfo),
                                     (unsigned)place->ipv6.sin6_scope_id);
            }
            if (told == NULL) return NULL;
            memcpy(&known->place, place, sizeof known->place);
            known->length = size;
            before = known->told;
            known->told = Py_NewRef(told);
            Py_XDECREF(before);
            return told;
        }
        /* A path, an abstract name (bytes, the first of which is 0), or nothing. */
        Py_ssize_t length = (Py_ssize_t)size - (Py_ssize_t)offsetof(struct sockaddr_un, sun_path);
        if (length <= 0) return Py_NewRef(Py_None);
        if (place->path.sun_path[0] == 0) return PyBytes_FromStringAndSize(place->path.sun_path, length);
        return PyUnicode_DecodeFSDefaultAndSize(place->path.sun_path, (Py_ssize_t)strnlen(place->path.sun_path, length));
    }

    static int greensock_add(PyObject *found, PyObject *data, PyObject *address) {
        PyObject *pair = data == NULL ? NULL : PyTuple_Pack(2, data, address);
        int failed = pair == NULL || PyList_Append(found, pair) < 0;
        Py_XDECREF(pair);
        Py_XDECREF(data);
        return failed ? -1 : 0;
    }

    /* What one read brought: a datagram, one that was too long, or several that the kernel put together. */
    static int greensock_split(PyObject *found, struct msghdr *head, char *data, Py_ssize_t count, Py_ssize_t most) {
        struct cmsghdr *extra;
        int segment = 0, failed = 0;
        Py_ssize_t at = 0;
        PyObject *address = greensock_told((greensock_place *)head->msg_name, head->msg_namelen);
        if (address == NULL) return -1;
        for (extra = CMSG_FIRSTHDR(head); extra != NULL; extra = CMSG_NXTHDR(head, extra))
            if (extra->cmsg_level == IPPROTO_UDP && extra->cmsg_type == GREENSOCK_GRO)
                memcpy(&segment, CMSG_DATA(extra), sizeof segment);
        if (segment <= 0) segment = count;
        if (head->msg_flags & MSG_TRUNC) failed = greensock_add(found, Py_NewRef(Py_None), address);
        else
            do {
                Py_ssize_t size = count - at < segment ? count - at : segment;
                PyObject *one = size > most ? Py_NewRef(Py_None) : PyBytes_FromStringAndSize(data + at, size);
                failed = greensock_add(found, one, address);
                at += size;
            } while (!failed && at < count);
        Py_DECREF(address);
        return failed;
    }

    static PyObject *greensock_receive_datagrams(PyObject *sock, int fd, Py_ssize_t size, int has_gro) {
        struct mmsghdr heads[GREENSOCK_READS];
        struct iovec places[GREENSOCK_READS];
        greensock_place peers[GREENSOCK_READS];
        union { char room[CMSG_SPACE(sizeof(int))]; struct cmsghdr align; } extras[GREENSOCK_READS];
        int is_long = size > GREENSOCK_SLOT, is_own = is_long || greensock_slots_taken, failed = 0, count, index;
        unsigned reads = is_long ? 1 : GREENSOCK_READS, each;
        /* Of all that was put together there has to be room, however short each datagram is to be. */
        Py_ssize_t slot = has_gro && size < GREENSOCK_SLOT ? GREENSOCK_SLOT : size;
        char *room = is_own ? PyMem_Malloc(is_long ? slot : GREENSOCK_READS * GREENSOCK_SLOT) : greensock_slots;
        PyObject *found = NULL;
        if (room == NULL) return PyErr_NoMemory();
        for (each = 0; each < reads; each++) {
            struct msghdr *head = &heads[each].msg_hdr;
            places[each].iov_base = room + (size_t)each * GREENSOCK_SLOT;
            places[each].iov_len = slot;
            head->msg_name = &peers[each];
            head->msg_namelen = sizeof peers[each];
            head->msg_iov = &places[each];
            head->msg_iovlen = 1;
            /* Without room for them no descriptors can be passed to us. */
            head->msg_control = has_gro ? &extras[each] : NULL;
            head->msg_controllen = has_gro ? sizeof extras[each] : 0;
            head->msg_flags = 0;
        }
        while ((count = recvmmsg(fd, heads, reads, MSG_DONTWAIT, NULL)) < 0 && errno == EINTR)
            if (PyErr_CheckSignals()) goto done;
        if (count < 0) {
            if (errno == EAGAIN || errno == EWOULDBLOCK) found = Py_NewRef(Py_None);
            else PyErr_SetFromErrno(PyExc_OSError);
            goto done;
        }
        if (!is_own) greensock_slots_taken = 1;
        found = PyList_New(0);
        for (index = 0; found != NULL && !failed && index < count; index++)
            failed = greensock_split(found, &heads[index].msg_hdr, places[index].iov_base, heads[index].msg_len,
                                     size);
        if (!is_own) greensock_slots_taken = 0;
        if (failed || (found != NULL && PyList_Reverse(found) < 0)) Py_CLEAR(found);
    done:
        if (is_own) PyMem_Free(room);
        return found;
    }

    /* Returns 0 if it is none that can be sent to. */
    static int greensock_find_place(int family, PyObject *address, greensock_place *place, socklen_t *length) {
        if (family == AF_UNIX) {
            PyObject *path = PyUnicode_Check(address) ? PyUnicode_EncodeFSDefault(address)
                             : PyBytes_Check(address) ? Py_NewRef(address) : NULL;
            int fits = path != NULL;
            if (fits) {
                Py_ssize_t size = PyBytes_GET_SIZE(path);
                fits = size > 0 && size < (Py_ssize_t)sizeof place->path.sun_path;
                if (fits) {
                    memset(&place->path, 0, sizeof place->path);
                    memcpy(place->path.sun_path, PyBytes_AS_STRING(path), size);
                    *length = offsetof(struct sockaddr_un, sun_path) + size + (PyBytes_AS_STRING(path)[0] != 0);
                }
                Py_DECREF(path);
            }
            PyErr_Clear();
            place->any.sa_family = AF_UNIX;
            return fits;
        }
        if (!PyTuple_Check(address) || PyTuple_GET_SIZE(address) < 2 || !PyUnicode_Check(PyTuple_GET_ITEM(address, 0)) ||
            !PyLong_Check(PyTuple_GET_ITEM(address, 1)))
            return 0;
        long port = PyLong_AsLong(PyTuple_GET_ITEM(address, 1));
        if (port < 0 || port > 65535) {
            PyErr_Clear();
            return 0;
        }
        greensock_known *known = &greensock_peers[port % GREENSOCK_KNOWN];
        if (known->told == address && known->place.sin6_family == family) {
            memcpy(place, &known->place, sizeof known->place);
            *length = known->length;
            return 1;
        }
        const char *host = PyUnicode_AsUTF8(PyTuple_GET_ITEM(address, 0));
        unsigned long more[2] = {0, 0};
        for (Py_ssize_t index = 2; index < PyTuple_GET_SIZE(address) && index < 4; index++) {
            if (!PyLong_Check(PyTuple_GET_ITEM(address, index))) return 0;
            more[index - 2] = PyLong_AsUnsignedLongMask(PyTuple_GET_ITEM(address, index));
        }
        if (host == NULL) {
            PyErr_Clear();
            return 0;
        }
        memset(place, 0, sizeof place->ipv6);
        place->any.sa_family = family;
        place->ipv4.sin_port = htons(port);
        *length = family == AF_INET ? sizeof place->ipv4 : sizeof place->ipv6;
        if (family == AF_INET) return inet_pton(AF_INET, host, &place->ipv4.sin_addr) == 1;
        place->ipv6.sin6_flowinfo = htonl(more[0]);
        place->ipv6.sin6_scope_id = more[1];
        return inet_pton(AF_INET6, host, &place->ipv6.sin6_addr) == 1;
    }

    #define GREENSOCK_NO_PATH "address=%R: the path of a socket, or an abstract name, expected"
    #define GREENSOCK_NO_PLACE "address=%R: (host, port) expected, the host in numbers"

    static Py_ssize_t greensock_send_datagram(PyObject *sock, int fd, int family, PyObject *data, PyObject *address) {
        greensock_place place;
        socklen_t length = 0;
        Py_buffer view;
        ssize_t count;
        int is_bytes = PyBytes_Check(data);
        if (address != Py_None && !greensock_find_place(family, address, &place, &length)) {
            PyErr_Format(PyExc_ValueError, family == AF_UNIX ? GREENSOCK_NO_PATH : GREENSOCK_NO_PLACE, address);
            return -1;
        }
        if (!is_bytes && PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0) return -1;
        while ((count = sendto(fd, is_bytes ? PyBytes_AS_STRING(data) : view.buf,
                               is_bytes ? PyBytes_GET_SIZE(data) : view.len, MSG_NOSIGNAL | MSG_DONTWAIT,
                               length ? &place.any : NULL, length)) < 0 &&
               errno == EINTR)
            if (PyErr_CheckSignals()) goto done;
        if (count < 0) PyErr_SetFromErrno(PyExc_OSError);
    done:
        if (!is_bytes) PyBuffer_Release(&view);
        return count;
    }
    #endif
    """
    object receive_datagrams "greensock_receive_datagrams"(object sock, int fd, Py_ssize_t size, bint has_gro)
    Py_ssize_t send_datagram "greensock_send_datagram"(object sock, int fd, int family, object data, object address) except -1
    enum:
        READS_AT_ONCE "GREENSOCK_READS"
