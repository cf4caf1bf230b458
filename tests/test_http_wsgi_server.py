"""The WSGI server: its logs, its arguments, the validator and the frameworks."""

from __future__ import annotations

import io
import json
import logging
import re
import socket
import sys
from wsgiref.validate import validator

import gevent
import gevent.event
import pytest
from conftest import PATIENCE, read_all, wait_until
from gevent import pywsgi
from gevent.pool import Pool
from geventwebsocket.handler import WebSocketHandler
from pairs import let_engine_look
from wsgi_serving import DATA, TEXT, Answer, Site, answers, chunked, sent_files, site  # noqa: F401  # fixtures

from greensock.http import HTTPServer, WSGIServer

# -- logs


def test_the_access_log_is_pywsgis(site):
    log = io.StringIO()
    here = site(answers([b"hello"]), log=log)
    sock = here.connect()
    sock.sendall(b"GET /a?b HTTP/1.0\r\n\r\n")
    size = len(read_all(sock))
    wait_until(log.getvalue)
    pattern = r'127\.0\.0\.1 - - \[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\] "GET /a\?b HTTP/1\.0" 200 (\d+) \d+\.\d{6}\n'
    assert re.fullmatch(pattern, log.getvalue()).group(1) == str(size)


def test_failures_are_in_the_access_log(site):
    log = io.StringIO()
    here = site(None, log=log)
    here.get()
    wait_until(log.getvalue)
    assert ' HTTP/1.1" 500 ' in log.getvalue()


def test_a_logger_may_be_the_log(site, caplog):
    caplog.set_level(logging.INFO)
    here = site(lambda environ, start_response: 1 / 0, log=logging.getLogger("w.a"), error_log=logging.getLogger("w.e"))
    here.get()
    wait_until(lambda: len(caplog.records) == 2)
    errors, access = caplog.records
    assert (errors.name, errors.levelname, access.name, access.levelname) == ("w.e", "ERROR", "w.a", "INFO")
    assert "ZeroDivisionError" in errors.message
    assert " 500 " in access.message
    assert not access.message.endswith("\n")


def test_default_and_no_log(capsys):
    quiet = WSGIServer(0, log=None, error_log=None)
    assert quiet.environ["wsgi.errors"] is quiet.error_log
    for stream in (quiet.log, quiet.error_log):
        stream.write("x")
        stream.writelines(["x"])
        stream.flush()
    loud = WSGIServer(0)
    assert loud.log is loud.error_log is sys.stderr
    assert capsys.readouterr() == ("", "")


def test_a_log_that_fails_does_not_fail_the_request(site, caplog):
    log = io.StringIO()
    log.close()
    assert site(answers([b"x"]), log=log).get().body == b"x"
    wait_until(lambda: "cannot write to" in caplog.text)


def test_refusals_are_not_in_the_error_log(site):
    here = site(answers([b"x"]))
    assert here.ask("GET / HTTP/1.1\n\n").status == 400
    assert here.server.refused == {"host-missing": 1}
    assert here.errors.getvalue() == ""


# -- arguments


class Silent(pywsgi.WSGIHandler):
    def log_request(self):
        pass


class Quiet(WebSocketHandler):
    """Has nothing of its own."""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"handler_class": print}, "handler_class="),
        ({"handler_class": Silent}, "it overrides log_request: log=, or"),
        ({"max_chunked": -1}, "max_chunked=-1"),
        ({"stream_chunked": 1}, "stream_chunked=1"),
        ({"spawn": print}, "spawn="),
        ({"spawn": True}, "spawn="),
        ({"spawn": 0}, "max_connections=0"),
        ({"log": "stderr"}, "log='stderr'"),
        ({"backlog": 0}, "backlog=0"),
    ],
)
def test_arguments_that_are_refused(options, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        WSGIServer(("127.0.0.1", 0), **options)


def test_arguments_that_are_taken():
    with pytest.raises(TypeError, match="handle=print: there are no handlers"):
        WSGIServer(0, handle=print)
    application = answers([])
    server = WSGIServer(0, application, 7, Pool(5), None, None, None, {"A": "b"}, keyfile=None, head_timeout=3.0)
    assert isinstance(server, HTTPServer)
    assert server.application is application
    assert (server.backlog, server.max_connections, server.head_timeout, server.environ["A"]) == (7, 5, 3.0, "b")
    assert WSGIServer(0, spawn=3).max_connections == 3
    for handler in (pywsgi.WSGIHandler, WebSocketHandler, Quiet):
        assert WSGIServer(("", 5000), application, handler_class=handler).application is application
    assert [WSGIServer(0, spawn=one).max_connections for one in (Pool(), "raw", gevent.spawn)] == [100_000] * 3
    assert WSGIServer(0, environ={"wsgi.multiprocess": True}).max_accept == 1


def test_a_listener_may_be_gevents_socket(site, connect):
    listener = gevent.socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(5)
    server = WSGIServer(listener, answers([b"x"]), log=None, stop_timeout=0.2)
    with server:
        assert Site(server, connect, None).get().body == b"x"
        server.close()
        with pytest.raises(ConnectionRefusedError):
            connect(server)


def test_init_socket_listens_and_start_serves(connect):
    server = WSGIServer(("127.0.0.1", 0), answers([b"x"]), log=None, stop_timeout=0.2)
    assert server.socket is None
    server.init_socket()
    assert server.environ["SERVER_PORT"] == str(server.server_port) != "0"
    assert server.socket.getsockname() == server.address
    early = connect(server)
    assert not server.started
    with server:
        assert Site(server, connect, None).ask("GET / HTTP/1.0\n\n", sock=early).body == b"x"
    assert server.socket is None


def test_no_request_comes_before_the_name_is_known(site, monkeypatch):
    seen = []

    class Slow(WSGIServer):
        def update_environ(self):
            with socket.create_connection(self.address, PATIENCE) as sock:
                sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
                let_engine_look()
                assert not seen
            super().update_environ()

    def application(environ, start_response):
        seen.append(environ["SERVER_NAME"])
        start_response("204 No Content", [])
        return []

    site(application, Slow)
    wait_until(lambda: seen)


def test_a_name_that_cannot_be_had(serve, monkeypatch):
    def fail(_):
        raise OSError("no such name")

    monkeypatch.setattr(gevent.socket, "getfqdn", fail)
    assert serve(WSGIServer).environ["SERVER_NAME"] == "127.0.0.1"

    class Failing(WSGIServer):
        def update_environ(self):
            raise LookupError

    failing = Failing(("127.0.0.1", 0))
    with pytest.raises(LookupError):
        failing.start()
    assert not failing.started


def test_serve_forever_and_stop():
    server = WSGIServer(("127.0.0.1", 0), answers([]), log=None)
    running = gevent.spawn(server.serve_forever, stop_timeout=0.1)
    wait_until(lambda: server.started)
    server.stop()
    running.get(timeout=PATIENCE)
    assert server.stop_timeout == 0.1


def test_an_answer_while_draining_says_that_it_is_the_last(site):
    called, go_on = gevent.event.Event(), gevent.event.Event()

    def application(environ, start_response):
        called.set()
        assert go_on.wait(PATIENCE)
        start_response("200 OK", TEXT)
        return [b"x"]

    here = site(application)
    sock = here.connect()
    sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert called.wait(PATIENCE)
    draining = gevent.spawn(here.server.drain, PATIENCE)
    wait_until(lambda: here.server.draining)
    go_on.set()
    answer = Answer(read_all(sock))
    assert (answer.body, answer.fields["Connection"]) == (b"x", "close")
    sock.close()
    assert draining.get(timeout=PATIENCE)


def test_request_done(site):
    done = []

    class Counting(WSGIServer):
        def request_done(self, request, response, sent):
            done.append((request.method, response.status, response.headers.get("content-type"), sent))

    here = site(answers([b"x"]), Counting)
    here.get()
    here.server.application = None
    here.get()
    wait_until(lambda: len(done) == 2)
    assert [line[:3] for line in done] == [("GET", 200, "text/plain"), ("GET", 500, "text/plain; charset=utf-8")]
    assert all(line[3] > 100 for line in done)


def test_a_request_done_that_fails_changes_nothing(site, caplog):
    class Failing(WSGIServer):
        def request_done(self, request, response, sent):
            raise RuntimeError("as it was told to")

    here = site(answers([b"x"]), Failing)
    sock = here.connect()
    sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert read_all(sock).count(b"HTTP/1.1 200 OK") == 2
    assert caplog.text.count("request_done failed") == 2


# -- the judge, and the frameworks


@pytest.mark.parametrize("way", ["list", "iterator", "write", "file", "hints"])
def test_the_validator_is_content(site, tmp_path, way):
    (tmp_path / "file").write_bytes(b"validated")

    def application(environ, start_response):
        stream = environ["wsgi.input"]
        read = stream.read(3) + stream.readline() + b"".join(stream.readlines()) + b"".join(stream)
        environ["wsgi.errors"].flush()
        if way == "hints":
            environ["wsgi.early_hints"]([("Link", "</a>; rel=preload")])
        write = start_response("200 OK", [*TEXT, ("X-Read", str(len(read)))])
        if way == "write":
            write(b"validated")
            return []
        if way == "file":
            return environ["wsgi.file_wrapper"](open(tmp_path / "file", "rb"))
        return [b"validated"] if way == "list" else iter([b"validated"])

    here = site(validator(application), early_hints=True)
    fields = "Host: a\nConnection: close\nTransfer-Encoding: chunked\n"
    head = here.get(method="HEAD")
    for answer in (
        head,
        here.get(),
        here.get("/a%20b?c"),
        here.post(body=b"one\ntwo\nthree"),
        here.ask(f"POST / HTTP/1.1\n{fields}\n", chunked(b"one\ntwo", 2)),
        here.ask("GET / HTTP/1.0\n\n"),
        here.ask("POST / HTTP/1.0\nContent-Length: 3\n\n", b"one"),
    ):
        assert answer.status == 200 or (way == "hints" and answer.status == 103), here.errors.getvalue()
        assert b"validated" in answer.body or answer is head or way == "hints"
    assert here.errors.getvalue() == ""


def test_flask(site, tmp_path, sent_files):
    from flask import Flask, Response, redirect, request, send_file, session

    app = Flask(__name__)
    app.secret_key = "x"
    (tmp_path / "file.txt").write_bytes(DATA)

    @app.route("/form", methods=["POST"])
    def form():
        session["name"] = request.form["name"]
        return redirect("/name")

    @app.route("/name")
    def name():
        return {"name": session.get("name"), "path": request.path, "host": request.host, "args": request.args["q"]}

    @app.route("/upload", methods=["POST"])
    def upload():
        file = request.files["file"]
        return f"{file.filename} {len(file.read())}"

    @app.route("/stream")
    def stream():
        return Response((f"line {number}\n" for number in range(3)), mimetype="text/plain")

    @app.route("/file")
    def file():
        return send_file(tmp_path / "file.txt")

    @app.route("/json", methods=["POST"])
    def add():
        return {"sum": sum(request.get_json())}

    @app.route("/fail")
    def fail():
        raise LookupError("in the view")

    here = site(app)
    answer = here.post("/form", b"name=J%C3%BCrgen", "Content-Type: application/x-www-form-urlencoded\n")
    assert (answer.status, answer.fields["Location"]) == (302, "/name")
    cookie = answer.fields["Set-Cookie"].partition(";")[0]
    answer = here.get("/name?q=%C3%A9", f"Cookie: {cookie}\n")
    assert answer.body == b'{"args":"\\u00e9","host":"a","name":"J\\u00fcrgen","path":"/name"}\n'
    parts = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n' + DATA + b"\r\n--b--\r\n"
    assert here.post("/upload", parts, "Content-Type: multipart/form-data; boundary=b\n").body == b"f 256000"
    assert here.get("/stream").body == b"".join(b"7\r\nline %d\n\r\n" % number for number in range(3)) + b"0\r\n\r\n"
    assert here.get("/file").body == DATA
    assert sent_files == [(0, len(DATA))]
    assert here.get("/file", "Range: bytes=10-19\n").body == DATA[10:20]
    fields = "Host: a\nConnection: close\nContent-Type: application/json\nTransfer-Encoding: chunked\n"
    assert here.ask(f"POST /json HTTP/1.1\n{fields}\n", chunked(b"[1, 2, 3]", 4)).body == b'{"sum":6}\n'
    head = here.get("/name?q=1", method="HEAD")
    assert (head.status, head.body) == (200, b"")
    assert int(head.fields["Content-Length"]) > 30
    assert here.get("/none").status == 404
    assert here.get("/fail").status == 500


def test_django(site, tmp_path, sent_files):
    import django
    from django.conf import settings
    from django.core.wsgi import get_wsgi_application
    from django.http import FileResponse, HttpResponse, JsonResponse, StreamingHttpResponse
    from django.urls import path

    (tmp_path / "file.txt").write_bytes(DATA)

    def show(request, name):
        return JsonResponse({"name": name, "q": request.GET["q"], "host": request.get_host(), "path": request.path})

    def form(request):
        return HttpResponse(f"{request.POST['a']} {request.FILES['file'].size}")

    def body(request):
        return HttpResponse(request.body)

    def stream(request):
        return StreamingHttpResponse(f"line {number}\n" for number in range(3))

    def file(request):
        return FileResponse(open(tmp_path / "file.txt", "rb"))

    def fail(request):
        raise LookupError("in the view")

    settings.configure(
        ALLOWED_HOSTS=["*"],
        DEBUG=False,
        LOGGING_CONFIG=None,
        MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
        ROOT_URLCONF=(
            path("show/<str:name>/", show),
            path("form", form),
            path("body", body),
            path("stream", stream),
            path("file", file),
            path("fail", fail),
        ),
        SECRET_KEY="x",
        USE_TZ=True,
    )
    application = get_wsgi_application()
    assert django.VERSION
    here = site(application)
    answer = here.get("/show/%C3%A9t%C3%A9/?q=%20x")
    assert json.loads(answer.body) == {"name": "été", "q": " x", "host": "a", "path": "/show/été/"}
    answer = here.get("/show/a?q=1")
    assert (answer.status, answer.fields["Location"]) == (301, "/show/a/?q=1")
    parts = (
        b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nvalue\r\n'
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n' + DATA + b"\r\n--b--\r\n"
    )
    kind = "Content-Type: multipart/form-data; boundary=b\n"
    assert here.post("/form", parts, kind).body == b"value 256000"
    fields = "Host: a\nConnection: close\nTransfer-Encoding: chunked\n"
    # Django goes by CONTENT_LENGTH alone.
    assert here.ask(f"POST /form HTTP/1.1\n{fields}{kind}\n", chunked(parts, 7000)).body == b"value 256000"
    assert here.ask(f"PUT /body HTTP/1.1\n{fields}\n", chunked(b"whole", 2)).body == b"whole"
    judged = site(validator(application))
    assert judged.ask(f"POST /form HTTP/1.1\n{fields}{kind}\n", chunked(parts, 7000)).status == 200
    assert judged.get("/stream").status == judged.get("/show/a/?q=1").status == 200
    assert here.get("/stream").body == b"".join(b"7\r\nline %d\n\r\n" % number for number in range(3)) + b"0\r\n\r\n"
    assert here.get("/file").body == DATA
    assert sent_files == [(0, len(DATA))]
    head = here.get("/stream", method="HEAD")
    assert (head.status, head.body) == (200, b"")
    assert here.get("/none").status == 404
    assert here.get("/fail").status == 500
