"""The application that the tests of gunicorn's worker serve. gunicorn imports it from its folder."""

import os
import sys
import time

#: Where it was imported: in the master if that preloads.
IMPORTED_BY = os.getpid()


def busy(seconds):
    """Hold the hub: no other greenlet runs."""
    due = time.monotonic() + seconds
    while time.monotonic() < due:
        pass


def application(environ, start_response):
    path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
    fields = [("Content-Type", "text/plain"), ("X-Pid", str(os.getpid()))]
    status, body = "200 OK", b"hello"
    if path == "/environ":
        body = "\n".join(f"{name}={value}" for name, value in sorted(environ.items())).encode()
    elif path == "/process":
        found = [os.getpid(), IMPORTED_BY, os.getuid(), os.getcwd(), os.environ.get("GREETING"), sys.path[:3]]
        body = repr(found).encode()
    elif path == "/sleep":
        time.sleep(float(query))
    elif path == "/busy":
        busy(float(query))
    elif path == "/upload":
        body = b"%d" % len(environ["wsgi.input"].read())
    elif path == "/spooled":
        body = os.readlink(f"/proc/self/fd/{environ['wsgi.input'].fileno()}").encode()
    elif path == "/file":
        start_response(status, fields)
        return environ["wsgi.file_wrapper"](open(__file__, "rb"))
    elif path == "/pieces":
        start_response("200 Fine", fields)
        return iter([b"one", b"two"])
    elif path == "/hints":
        environ["wsgi.early_hints"]([("Link", "</style.css>; rel=preload")])
    elif path == "/errors":
        environ["wsgi.errors"].write("said to wsgi.errors\n")
    elif path == "/print":
        print("said to stdout", flush=True)
    elif path == "/fail":
        raise ValueError("it fails")
    elif path == "/exit":
        sys.exit("it wants to end")
    elif path == "/gone":
        status = "404 Gone Fishing"
    start_response(status, fields)
    return [body]
