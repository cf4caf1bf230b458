"""Server classes that the tests of ``greensock run`` serve."""

import os
import time
from pathlib import Path

import gevent

from greensock import ClientLimits, Server
from greensock.http import HTTPServer, Response

#: What a file beside the program says is read with the import: so a reload shows new code.
WORDS = Path("words").read_text() if os.path.exists("words") else "hello"
if WORDS == "broken":
    raise RuntimeError("the new code is broken")


class Site(HTTPServer):
    def handle_request(self, request):
        if request.path == "/sleep":
            gevent.sleep(float(request.query))
        if request.path == "/busy":
            due = time.monotonic() + float(request.query)
            while time.monotonic() < due:
                pass
        fields = {"X-Pid": str(os.getpid())}
        return Response(f"{WORDS} {self.idle_timeout}", headers=fields)


class Echo(Server):
    def connection_recv(self, conn, data):
        conn.send(data)


class Odd(Server):
    def __init__(self, listener, **options):
        raise ValueError("it wants something else")


NO_CLASS = 5


class Limited(Server):
    """Greets three at a time of each client."""

    client_limits = ClientLimits(max_connections=3)

    def connection_new(self, conn):
        conn.send(b"%d" % os.getpid())
