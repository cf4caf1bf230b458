"""What gunicorn's hooks and logs are told by our worker, and what an application finds in its environ."""

from __future__ import annotations

import ast
import re
import signal
import socket

from arbiters import arbiter
from conftest import wait_until
from served import once

pytestmark = once

FORMAT = "%(h)s|%(l)s|%(u)s|%(r)s|%(m)s|%(U)s|%(q)s|%(H)s|%(s)s|%(B)s|%(b)s|%(f)s|%(a)s|%(T)s|%(M)s|%(D)s|%(L)s|%(p)s"
FORMAT += "|%({x-in}i)s|%({x-pid}o)s|%({raw_uri}e)s|%(t)s"

FIRST = "127.0.0.1|-|user|GET /?a=b HTTP/1.1|GET|/|a=b|HTTP/1.1|200|5|5|http://r/|me"

HOOKS = """
def note(name):
    def hook(*given):
        log = next(getattr(each, "log") for each in given if hasattr(each, "log"))
        words = [type(each).__name__ for each in given]
        log.info("hook %s %r", name, words)
    return hook

def nworkers_changed(server, new_value, old_value): note("nworkers_changed")(server)
def on_starting(server): note("on_starting")(server)
def on_reload(server): note("on_reload")(server)
def when_ready(server): note("when_ready")(server)
def pre_fork(server, worker): note("pre_fork")(server, worker)
def post_fork(server, worker): note("post_fork")(server, worker)
def post_worker_init(worker): note("post_worker_init")(worker)
def child_exit(server, worker): note("child_exit")(server, worker)
def worker_exit(server, worker): note("worker_exit")(server, worker)
def on_exit(server): note("on_exit")(server)
def pre_request(worker, req):
    worker.log.info("hook pre_request %r", [req.method, req.path, req.query, req.version, dict(req.headers)["X-IN"]])
    if req.path == "/refuse":
        raise ValueError("pre_request refuses")
def post_request(worker, req, environ, resp):
    told = [req.uri, environ["PATH_INFO"], resp.status, resp.sent, dict(resp.headers).get("X-Pid") is not None]
    worker.log.info("hook post_request %r %s", told, environ.get("wsgi.url_scheme"))
    if req.path == "/pieces":
        raise ValueError("post_request fails")
"""


def told(log, hook):
    """Return what a hook was told, each time."""
    return [ast.literal_eval(found) for found in re.findall(rf"hook {hook} (\[.*\])", log)]


def test_hooks(tmp_path):
    with arbiter(tmp_path, HOOKS) as master:
        assert master.ask("/?a=b", "X-In: in\r\n").status == 200
        assert master.ask("/pieces", "X-In: in\r\n").body.endswith(b"0\r\n\r\n")
        assert master.ask("/fail", "X-In: in\r\n").status == 500
        assert master.ask("/refuse", "X-In: in\r\n").status == 500
        assert master.ask("/file", "X-In: in\r\n").status == 200
        assert told(master.log(), "pre_request")[0] == ["GET", "/", "a=b", (1, 1), "in"]
        wait_until(lambda: len(told(master.log(), "post_request")) == 5)
        post = told(master.log(), "post_request")
        assert post[:3] == [
            ["/?a=b", "/", "200 OK", 5, True],
            ["/pieces", "/pieces", "200 Fine", 6, True],
            ["/fail", "/fail", "500 Internal Server Error", 21, False],
        ]
        assert post[4][3] == len(master.ask("/file", "X-In: in\r\n").body)
        for words in "it fails", "pre_request refuses", "post_request fails", "Exception in post_request hook":
            assert words in master.log(), words
        master.send(signal.SIGHUP)
        master.wait_for("hook worker_exit")
        assert master.stop() == 0
        log = master.log()
        for hook in (
            "on_starting",
            "when_ready",
            "pre_fork",
            "post_fork",
            "post_worker_init",
            "on_reload",
            "child_exit",
        ):
            assert f"hook {hook} " in log, hook
        assert log.rstrip().endswith("hook on_exit ['Arbiter']")


EARLY = """
import os, signal
from gevent import monkey
patch_all = monkey.patch_all
def post_fork(server, worker):
    def patch():
        if worker.age == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        patch_all()
    monkey.patch_all = patch
"""


def test_a_worker_that_is_told_to_end_while_it_begins(tmp_path):
    with arbiter(tmp_path, EARLY) as master:
        master.wait_for("Worker exiting")
        assert master.ask().status == 200


def test_the_access_log(tmp_path):
    settings = f"accesslog = 'access'\naccess_log_format = {FORMAT!r}\n"
    with arbiter(tmp_path, settings) as master:
        fields = "Referer: http://r/\r\nUser-Agent: me\r\nAuthorization: Basic dXNlcjpwdw==\r\nX-In: in\r\n"
        pid = master.ask("/?a=b", fields).pid
        master.ask("/pieces")
        master.ask("/gone", method="HEAD")
        master.ask("/sleep?0.2")
        access = tmp_path / "access"
        wait_until(lambda: access.read_text().count("\n") == 4)
        first, second, third, fourth = [line.split("|") for line in access.read_text().splitlines()]
        assert first[:13] == FIRST.split("|")
        assert first[17:21] == [f"<{pid}>", "in", str(pid), "/?a=b"]
        assert second[8:10] == ["200", "6"]
        assert third[8:11] == ["404", "0", "0"]
        assert fourth[13] == "0"
        assert 200 <= int(fourth[14]) < 2000
        assert int(fourth[15]) // 1000 == int(fourth[14])
        # Rotation: the file is renamed, and SIGUSR1 has all of them open a new one.
        access.rename(tmp_path / "access.1")
        master.send(signal.SIGUSR1)
        wait_until(access.exists)
        wait_until(lambda: master.ask().status == 200 and access.read_text())


def test_the_error_log(tmp_path):
    settings = "errorlog = 'errors'\nloglevel = 'debug'\ncapture_output = True\n"
    with arbiter(tmp_path, settings, logfile="errors") as master:
        master.ask("/print")
        master.ask("/fail")
        master.wait_for("said to stdout")
        master.wait_for("ValueError: it fails")
        assert "Error handling request /fail" in master.log()
        assert "[DEBUG] Current configuration:" in master.log()
    assert not (tmp_path / "stderr").read_text()


def test_statsd(tmp_path):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as statsd:
        statsd.bind(("127.0.0.1", 0))
        statsd.settimeout(10)
        settings = f"statsd_host = '127.0.0.1:{statsd.getsockname()[1]}'\nstatsd_prefix = 'site'\n"
        with arbiter(tmp_path, settings) as master:
            assert master.ask("/gone").status == 404
            heard = b""
            while b"status" not in heard:
                heard = statsd.recv(65536)
            assert heard == b"site.gunicorn.request.status.404:1|c|@1.0"


def test_the_environ_and_what_an_application_may_do(tmp_path):
    with arbiter(tmp_path, "") as master:
        assert master.ask("/hints").status == 103
        assert master.ask("/hints").body.startswith(b"HTTP/1.1 200 OK\r\n")
        environ = master.ask("/environ?a=%20b", "Upgrade: x\r\nConnection: upgrade\r\n").environ
        assert environ["RAW_URI"] == "/environ?a=%20b"
        assert environ["gunicorn.socket"] == environ["werkzeug.socket"]
        assert environ["wsgi.multithread"] == "True"
        assert environ["wsgi.multiprocess"] == "False"
        master.ask("/errors")
        master.wait_for("said to wsgi.errors")
        before = master.ask().pid
        assert master.ask("/exit").status == 500
        master.wait_for("the application called sys.exit")
        assert master.ask().pid == before, "the worker goes on"
        assert master.ask(fields="Content-Length: x\r\n").status == 400
        master.wait_for("Invalid request from ip=127.0.0.1: ")
