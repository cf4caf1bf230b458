"""The operators' address: a small HTTP server in each worker, any of which answers for all.

========================  ==========================================================================================
``GET /``                 the status page
``GET /metrics``          Prometheus (``exposition``)
``GET /status.json``      what the page and ``greensock top`` show
``GET /healthz``          200 as long as a worker answers
``GET /readyz``           200 if new requests are welcome, else 503 and why
``GET /connections``      the connections of the worker that answers, ``MOST_CONNECTIONS`` at the most
``GET /stacks``           its greenlets' stacks, ``MOST_LINES`` at the most; behind the token
``POST /drain, /ready``   ``{"upstream", "server"}``: give a server no more requests, or some again; behind the token
``POST /servers``         the same, and options of the server, which ``server`` is the URL of: add it; behind the token
``DELETE /servers``       ``{"upstream", "server"}``: remove it; behind the token
========================  ==========================================================================================

Who may ask:

- Whoever reaches the address, where that is of this machine alone or ``allow_remote`` says so; else who shows the token
  (``Authorization: Bearer``, or as a password, which browsers ask for). ``/healthz`` and ``/readyz`` are for all.
- What changes something, or shows code, wants ``Bearer`` always: a browser sends that for no other site's page.
- No page of another site: the Host must be a number, ``localhost`` or one of ``names``, or else a name that is led
  elsewhere (DNS rebinding) would do; no field of CORS is ever sent; what a browser says that another site's page asked
  for is refused.

It goes on while its worker drains, so that ``/readyz`` can say so, and ends with it.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import logging
import os
from base64 import b64decode
from collections.abc import Callable
from typing import Any, cast

from gevent.util import format_run_info

from greensock.http.errors import BadRequest
from greensock.http.server.http_server import HTTPServer
from greensock.http.server.request import Request
from greensock.http.server.response import HTTPError, Response
from greensock.http.wire.limits import Limits
from greensock.operations.operations_options import OperationsOptions
from greensock.operations.status_page import PAGE_FIELDS, page_file
from greensock.operations.status_report import connections_of, readiness_of, status_of
from greensock.operations.worker_watch import Behind, Conflict, WorkerWatch

__all__ = ["OperationsServer"]

log = logging.getLogger("greensock.server")

#: How many connections are shown, and lines of stacks.
MOST_CONNECTIONS, MOST_LINES = 1000, 5000
#: Bytes of a body, which names a server, and may say how it is.
MOST_BODY = 4096
#: What goes with every answer.
FIELDS = (
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)
#: What a browser says of a request that another site's page made (Fetch Metadata, section 2.3).
OF_OTHERS = (b"cross-site", b"same-site")
TEXT = "text/plain; charset=utf-8"


class OperationsServer(HTTPServer):
    """Answers operators; and with it the watch begins and ends."""

    max_connections = 128
    max_workers = 16
    idle_timeout = 30.0
    head_timeout = 10.0
    body_timeout = 10.0
    send_timeout = 20.0
    linger_timeout = 2.0
    limits = Limits(max_target=2048, max_head=16384, max_body=MOST_BODY)

    def __init__(self, listener: Any, options: OperationsOptions, watch: WorkerWatch, name: str, **more: Any) -> None:
        super().__init__(listener, **more)
        #: What it was made with.
        self.told = options
        #: What is told.
        self.watch = watch
        self._name = name
        self._exposition: Any = None
        self._names: set[str] = set()
        self.change(options)
        self._pages: dict[str, dict[str, Callable[[Request], Response]]] = {
            "/metrics": {"GET": self._metrics},
            "/status.json": {"GET": self._status},
            "/connections": {"GET": self._connections},
            "/healthz": {"GET": lambda request: Response("ok\n")},
            "/readyz": {"GET": self._ready},
            "/stacks": {"GET": self._stacks},
            "/drain": {"POST": self._set_server},
            "/ready": {"POST": self._set_server},
            "/servers": {"POST": self._add_server, "DELETE": self._remove_server},
        }

    def change(self, options: OperationsOptions) -> None:
        """Answer by these from now on; the address stays."""
        self.told = options
        self._names = {each.lower() for each in (*options.names, "localhost")}

    # -- life

    def start(self) -> None:
        """Begin to watch, and to answer."""
        try:
            # Here, and not when it is asked for: it takes a while, in which nobody else would be served.
            from greensock.operations.exposition import Exposition

            self._exposition = Exposition(self.watch)
        except ImportError as error:
            log.warning("no /metrics: %s; pip install 'greensock[metrics]'", error)
        super().start()
        self.watch.start()

    def hand_over(self, timeout: float | None = None, accepting: bool = False) -> None:
        """Stay: it ends when all others have."""

    def abort(self) -> None:
        """Stop, and write what was counted a last time."""
        if self.started:
            self.watch.stop()
        super().abort()

    # -- requests

    def handle_request(self, request: Request) -> Response:
        """Answer an operator."""
        path = request.path
        if not self._is_host_known(request):
            raise self._error(421, f"Host {request.host[:80]!r} is none of this address: see names in [operations]")
        answers = self._pages.get(path, {"GET": self._page})
        method = "GET" if request.method == "HEAD" else request.method
        if method not in answers:
            allowed = ", ".join("GET, HEAD" if each == "GET" else each for each in answers)
            raise self._error(405, f"{' or '.join(answers)} expected", ("Allow", allowed))
        site = request.headers.get_raw(b"sec-fetch-site")
        if site in OF_OTHERS and path != "/":  # a link may lead there
            raise self._error(403, "not for a page of another site")
        if method != "GET" or path == "/stacks":
            self._want_bearer(request)
        elif self.told.needs_token and path not in ("/healthz", "/readyz"):
            self._want_token(request)
        response = answers[method](request)
        for name, value in FIELDS:
            if name.lower() not in response.headers:
                response.headers.add(name, value)
        return response

    def request_refused(self, conn: Any, refusal: BadRequest | HTTPError) -> Response:
        """Say it as all else here: what is wrong may quote what came, so it is no HTML."""
        answer = super().request_refused(conn, refusal)
        answer.headers.set("X-Content-Type-Options", "nosniff")
        return answer

    def _is_host_known(self, request: Request) -> bool:
        """Whether a browser that sends this Host was led here by who runs this."""
        if not isinstance(request.connection.address, tuple):
            return True  # a Unix socket: no browser comes that way
        host = request.head.authority.decode("latin-1").rpartition("@")[2].lower()
        if not host:
            return request.version == "1.0"  # which no browser speaks
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        if name.removesuffix(".") in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True  # a number is led nowhere else

    def _error(self, status: int, text: str, *fields: tuple[str, str]) -> HTTPError:
        """Return an error as scripts read it."""
        error = HTTPError(status, headers=[*FIELDS, *fields])
        error.response = Response.json({"error": text}, status, [*FIELDS, *fields])
        return error

    # -- the token

    def _want_bearer(self, request: Request) -> None:
        if self.told.token is None:
            raise self._error(403, "no token is configured: set token in [operations] to allow this")
        scheme, given = _credentials(request)
        if scheme != "bearer" or not self._is_token(given):
            raise self._error(401, "Authorization: Bearer TOKEN expected", ("WWW-Authenticate", "Bearer"))

    def _want_token(self, request: Request) -> None:
        scheme, given = _credentials(request)
        if scheme == "basic":
            try:
                given = b64decode(given, validate=True).partition(b":")[2]
            except ValueError:
                given = b""
        if not self._is_token(given):
            realm = ("WWW-Authenticate", 'Basic realm="greensock", charset="UTF-8"')
            raise self._error(401, "the token expected: Authorization: Bearer TOKEN, or as a password", realm)

    def _is_token(self, given: bytes) -> bool:
        token = self.told.token
        # In a time that does not tell how much of it is right.
        return token is not None and hmac.compare_digest(given, token.encode())

    # -- what there is

    def _page(self, request: Request) -> Response:
        found = page_file(request.path)
        if found is None:
            raise self._error(404, "no such page")
        content_type, body = found
        return Response(body, headers=PAGE_FIELDS, content_type=content_type)

    def _metrics(self, request: Request) -> Response:
        if self._exposition is None:
            raise self._error(501, "prometheus-client is not installed: pip install 'greensock[metrics]'")
        accept = (request.headers.get_raw(b"accept") or b"").decode("latin-1")
        body, content_type = self._exposition.written(accept)
        return Response(body, content_type=content_type)

    def _status(self, request: Request) -> Response:
        return Response.json(status_of(self.watch, self._name))

    def _ready(self, request: Request) -> Response:
        is_ready, text = readiness_of(self.watch, self.told.ready_upstreams)
        return Response(f"{text}\n", 200 if is_ready else 503)

    def _connections(self, request: Request) -> Response:
        servers = self.watch.servers
        alive = sum(server.connections_alive for server in servers)
        shown = connections_of(servers, MOST_CONNECTIONS)
        return Response.json({"pid": os.getpid(), "connections": alive, "shown": shown})

    def _stacks(self, request: Request) -> Response:
        lines: list[str] = cast(Any, format_run_info)()
        more = len(lines) - MOST_LINES
        if more > 0:
            lines[MOST_LINES:] = [f"... and {more} lines more"]
        return Response("\n".join([f"process {os.getpid()}", *lines, ""]), content_type=TEXT)

    # -- orders

    def _set_server(self, request: Request) -> Response:
        told, behind = self._order_of(request)
        self._done(behind.set_server, told["upstream"], told["server"], request.path.removeprefix("/"))
        return Response(b"", 204)

    def _add_server(self, request: Request) -> Response:
        told, behind = self._order_of(request)
        upstream, url = told.pop("upstream"), told.pop("server")
        name = self._done(behind.add_server, upstream, url, told)
        return Response.json({"upstream": upstream, "server": name}, 201)

    def _remove_server(self, request: Request) -> Response:
        told, behind = self._order_of(request)
        self._done(behind.remove_server, told["upstream"], told["server"])
        return Response(b"", 204)

    def _order_of(self, request: Request) -> tuple[dict[str, Any], Behind]:
        """Return what an order says, which names an upstream and a server, and who is to follow it."""
        try:
            told = json.loads(request.body.read_all(MOST_BODY))
        except BadRequest:
            raise  # too long, or cut short
        except (ValueError, RecursionError):
            told = None
        names = ("upstream", "server")
        if not isinstance(told, dict) or not all(isinstance(told.get(each), str) for each in names):
            raise self._error(400, 'a JSON object with "upstream" and "server" expected, both texts')
        if self.watch.behind is None:
            raise self._error(404, "there are no servers behind this one")
        return told, self.watch.behind

    def _done(self, order: Callable[..., Any], *told: Any) -> Any:
        """Have an order followed, and return what it returns; or say why it is not followed."""
        try:
            return order(*told)
        except LookupError as error:
            raise self._error(404, str(error.args[0] if error.args else error)) from None
        except ValueError as error:
            raise self._error(400, str(error)) from None
        except Conflict as error:
            raise self._error(409, str(error)) from None
        except OSError as error:
            raise self._error(503, str(error)) from None


def _credentials(request: Request) -> tuple[str, bytes]:
    """Return the scheme, in lower case, and what stands behind it."""
    scheme, _, rest = (request.headers.get_raw(b"authorization") or b"").partition(b" ")
    return scheme.decode("latin-1").lower(), rest.strip()
