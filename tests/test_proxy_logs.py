"""Logs of the proxy: formats of one's own, syslog, the error log, and lines about single requests."""

from __future__ import annotations

import logging
import os
import re
import select
import socket

import gevent
import pytest
from conftest import PATIENCE, read_all, wait_until
from gevent.event import Event
from hypothesis import given, settings
from hypothesis import strategies as st
from proxies import Origin
from test_proxy_access_log import WHOLE, in_local_time, record

from greensock.proxy import (
    AccessLog,
    ErrorLog,
    Gateway,
    ProxyTimeouts,
    Record,
    ReverseProxy,
    Route,
    ServerOptions,
    UpstreamOptions,
    combined_line,
)
from greensock.proxy.log.line_format import FIELDS, line_function
from greensock.proxy.log.log_lines import request_line, utc_time
from greensock.proxy.log.targets import is_target, syslog_address

#: What each field says of WHOLE.
SAID = {
    "client": "192.0.2.1",
    "peer": "10.0.0.1",
    "user": "joe",
    "method": "GET",
    "target": "/0?a=b",
    "path": "/0",
    "query": "a=b",
    "version": "1.1",
    "host": "example.org",
    "referer": "http://example.org/",
    "agent": "curl/8",
    "status": "200",
    "sent": "1234",
    "received": "5",
    "duration": "0.250000",
    "route": "api",
    "upstream": "127.0.0.1:9000, 127.0.0.1:9001",
    "upstream_status": "-, 200",
    "connect_time": "0.000000",
    "head_time": "0.125000",
    "upstream_time": "0.187500",
    "tries": "2",
    "reused": "1",
    "reason": "-",
    "request_id": "f00",
    "request": "GET\\x20/0?a=b\\x20HTTP/1.1",
    "time_utc": "2023-11-14T22:13:20.250Z",
}


# -- formats


def test_each_field():
    made = record(**WHOLE)
    made.target = b"/0?a=b"
    assert {*SAID, "time"} == {*FIELDS}
    assert {*Record.__slots__} - {"started"} <= {*FIELDS}
    for name, said in SAID.items():
        assert line_function("{" + name + "}")(made) == said.encode() + b"\n", name
    bare = Record(0.0, "", "", "", b"", "")
    for name in FIELDS:
        line = line_function("{" + name + "}")(bare)
        assert len(line) > 1, name


def test_a_format_of_ones_own():
    made = record(agent=b'a b"c\xff', **{key: value for key, value in WHOLE.items() if key != "agent"})
    for form, line in {
        '{client} "{request}" {status} "{agent}"': b'192.0.2.1 "GET /0 HTTP/1.1" 200 "a b\\x22c\\xFF"\n',
        "{{{status}}} 100% {agent}|é": "{200} 100% a\\x20b\\x22c\\xFF|é\n".encode(),
        '{{"status":{status},"agent":"{agent}"}}': b'{"status":200,"agent":"a b\\x22c\\xFF"}\n',
    }.items():
        assert line_function(form)(made) == line
    built = line_function('{client} - {user} [{time}] "{request}" {status} {sent} "{referer}" "{agent}"')(made)
    assert in_local_time(combined_line(made)).startswith(in_local_time(built).rstrip(b"\n"))
    assert request_line(made) in combined_line(made)
    assert utc_time(1700000000.25) == SAID["time_utc"]


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("{clint}", "{client} in the place of {clint} expected"),
        ("{http_user_agent}", "{agent} in the place of {http_user_agent} expected"),
        ("{request_time}", "{duration} in the place of {request_time} expected"),
        ("{zzzz}", "{zzzz} is no field: one of client, peer, "),
        ("{client", "a field in braces, or {{ and }} for braces, expected"),
        ("client}", "a field in braces, or {{ and }} for braces, expected"),
        ("{client}\n{status}", "one line without control characters expected"),
        ("{{client}}", "at least one field such as {client} expected"),
    ],
)
def test_a_format_that_is_none(form, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        line_function(form)


@settings(max_examples=30)
@given(st.binary(max_size=20), st.binary(max_size=20), st.binary(max_size=20))
def test_whatever_came_a_field_is_a_field(target, agent, raw):
    user = raw.decode("latin-1") + "\N{SNOWMAN}" * (len(raw) % 2)
    made = record(agent=agent, user=user, method=user)
    made.target = target
    line = line_function('{user} {target} {request} {agent} "{agent}" {status}')(made)
    assert re.fullmatch(rb'[!-~]+ [!-~]+ [!-~]+ [!-~]+ "[ !#-~]+" 0\n', line), line


# -- targets


def test_targets():
    for text, address in {
        "syslog": "/dev/log",
        "syslog:/run/log": "/run/log",
        "udp://127.0.0.1:1514": ("127.0.0.1", 1514),
        "udp://logs.example": ("logs.example", 514),
        "udp://[::1]:5": ("::1", 5),
        "stderr": None,
        "/var/log/x": None,
    }.items():
        assert syslog_address(text) == address
        assert is_target(text)
    for text in ("", "none", "a\0", "udp://", "udp://a:b", "udp://a:99999", "udp://a:0", "tcp://a:1", "syslog:", 5):
        assert not is_target(text), text


@pytest.fixture(params=["udp", "unix"])
def daemon(request, tmp_path):
    """A syslog daemon: its target, and its socket."""
    if request.param == "udp":
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
        target = f"udp://127.0.0.1:{sock.getsockname()[1]}"
    else:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sock.bind(str(tmp_path / "log"))
        target = f"syslog:{tmp_path}/log"
    with sock:
        sock.settimeout(PATIENCE)
        yield target, sock


#: What stands before a line, by UDP (RFC 5424 section 6) and to this machine's daemon (syslog(3)).
HEADS = {
    socket.AF_INET: rb"<%d>1 \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z [!-~]+ greensock %d - - ",
    socket.AF_UNIX: rb"<%d>[A-Z][a-z]{2} [ 123]\d \d\d:\d\d:\d\d greensock\[%d\]: ",
}


def heard(sock, priority):
    """Return what a daemon hears next, without its head."""
    data = sock.recv(65536)
    match = re.match(HEADS[sock.family] % (priority, os.getpid()), data)
    assert match is not None, data
    return data[match.end() :]


def test_the_access_log_to_syslog(daemon):
    target, sock = daemon
    log = AccessLog(target, "{target}", facility="local3")
    for number in range(3):
        log.write(record(number))
    log.reopen()
    log.write(record(3))
    assert [heard(sock, 19 * 8 + 6) for _ in range(4)] == [b"/0", b"/1", b"/2", b"/3"]
    assert log.close()
    assert (log.written, log.dropped) == (4, 0)


def test_a_daemon_that_goes_and_comes_again(tmp_path, caplog):
    path = str(tmp_path / "log")
    log = AccessLog(f"syslog:{path}", "{target}")
    log.write(record(0))
    wait_until(lambda: log.dropped == 1)
    for number in (1, 2):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(PATIENCE)
            sock.bind(path)
            log.write(record(number))
            assert heard(sock, 3 * 8 + 6) == b"/%d" % number
        os.unlink(path)
    assert log.close()
    assert (log.written, log.dropped) == (2, 1)


def test_a_daemon_that_takes_nothing_stops_nobody(tmp_path, caplog):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "log"))
        access = AccessLog(f"syslog:{tmp_path}/log", "{target}", max_pending=10_000)
        error = ErrorLog(f"syslog:{tmp_path}/log")
        logger = logging.Logger("greensock.test")
        logger.addHandler(error)
        for number in range(2000):
            logger.error("line %d", number)
        assert error.lost > 0
        for number in range(2000):
            access.write(record(number))
        access.close(0)
        assert access.dropped > 0
        assert access.written + access.dropped == 2000
        while select.select([sock], [], [], 0)[0]:
            sock.recv(65536)
        sock.settimeout(PATIENCE)
        logger.error("at last")
        assert sock.recv(65536).endswith(b"%d lines of this log were lost: they were not taken at once" % error.lost)
        assert sock.recv(65536).endswith(b"greensock.test: at last")
        error.close()


# -- the error log


@pytest.fixture
def logger():
    """A logger, and what makes it write to a target."""
    made = []

    def make(target, facility="daemon"):
        logger = logging.Logger("greensock.upstream", logging.INFO)
        made.append(ErrorLog(target, facility))
        logger.addHandler(made[-1])
        return logger, made[-1]

    yield make
    for each in made:
        each.close()


def test_the_error_log_to_a_file(logger, tmp_path):
    path = tmp_path / "errors"
    log, handler = logger(str(path))
    assert not path.exists()
    log.warning("web: %s is down: \x1b[31m%s", "a:1", "one\ntwo")
    try:
        raise ValueError("odd")
    except ValueError:
        log.exception("failed")
    log.debug("not told")
    lines = path.read_text().splitlines()
    start = rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d,\d{{3}} \[{os.getpid()}\] "
    assert re.fullmatch(start + r"WARNING greensock\.upstream: web: a:1 is down: \\x1B\[31mone", lines[0])
    assert lines[1] == "\ttwo"
    assert re.fullmatch(start + "ERROR greensock.upstream: failed", lines[2])
    assert lines[-1] == "\tValueError: odd"
    path.rename(tmp_path / "errors.1")
    log.info("to the old one")
    handler.reopen()
    log.info("to the new one")
    assert path.read_text().count("\n") == 1
    handler.follow(str(tmp_path / "other"))
    log.info("elsewhere")
    assert "elsewhere" in (tmp_path / "other").read_text()


def test_the_error_log_to_syslog(logger, daemon):
    target, sock = daemon
    log, handler = logger(target, "local0")
    for write, severity in ((log.info, 6), (log.warning, 4), (log.error, 3), (log.critical, 2)):
        write("is %s", "down")
        assert heard(sock, 16 * 8 + severity) == b"greensock.upstream: is down"
    handler.reopen()
    log.info("x" * 100_000)
    assert len(heard(sock, 16 * 8 + 6)) < 8192


def test_what_cannot_be_written_is_told_elsewhere(logger, tmp_path, capfd):
    log, handler = logger(str(tmp_path / "none" / "errors"))
    log.error("important")
    assert "No such file or directory: " in (said := capfd.readouterr().err)
    assert "greensock.upstream: important\n" in said
    (tmp_path / "none").mkdir()
    log.error("again")
    assert "again" in (tmp_path / "none" / "errors").read_text()
    handler.follow("stderr")
    log.error("there")
    assert "greensock.upstream: there\n" in capfd.readouterr().err
    log.error("%d", "no number")
    assert "Traceback" in capfd.readouterr().err
    with pytest.raises(OSError):
        handler.follow("udp://no.invalid:514")
    log.error("still there")
    assert "still there" in capfd.readouterr().err
    assert handler.lost == 0


# -- lines about single requests


def gateway(*urls, **options):
    group = UpstreamOptions("web", tuple(map(ServerOptions, urls)), **options)
    return Gateway([group], [Route("web")], timeouts=ProxyTimeouts(drain=0.0))


def ask(address, request=b"GET /x?y HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n"):
    with socket.create_connection(address) as sock:
        sock.settimeout(PATIENCE)
        sock.sendall(request)
        return read_all(sock)


def test_a_server_that_fails_is_told_with_the_request(serve, caplog):
    caplog.set_level(logging.INFO, "greensock.upstream")
    origin = serve(Origin)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        dead = f"127.0.0.1:{closed.getsockname()[1]}"
    records = []
    proxy = serve(ReverseProxy, gateway=gateway(f"http://{dead}", origin.url), request_recorded=records.append)
    assert b" 200 " in ask(proxy.address)
    wait_until(lambda: records)
    (said,) = [each.getMessage() for each in caplog.records if "request" in each.getMessage()]
    start = f"web: {dead}: request {records[0].request_id} (GET a.example /x?y) failed: connect-failed, "
    assert said.startswith(start)


def test_lines_about_requests_are_bounded(serve, caplog):
    caplog.set_level(logging.INFO, "greensock.upstream")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        dead = f"127.0.0.1:{closed.getsockname()[1]}"
    proxy = serve(ReverseProxy, gateway=gateway(f"http://{dead}"))
    request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    answers = ask(proxy.address, request * 80 + request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    assert answers.count(b"HTTP/1.1 50") == 81
    said = [each for each in caplog.records if " request " in each.getMessage()]
    assert 50 <= len(said) < 80


def test_refused_heads_are_logged_with_what_could_be_read(serve, tmp_path):
    path = tmp_path / "log"
    made = gateway("http://127.0.0.1:1")
    made.log = AccessLog(str(path), '{status} {reason} "{request}" {host}')
    proxy = serve(ReverseProxy, gateway=made)
    assert b" 400 " in ask(proxy.address, b"GET /x HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
    assert b" 400 " in ask(proxy.address, b"nonsense \x16\r\n\r\n")
    assert made.log.close()
    first, second = path.read_text().splitlines()
    assert re.fullmatch(r'400 [a-z-]+ "GET /x HTTP/1\.1" a', first)
    assert re.fullmatch(r'400 [a-z-]+ "nonsense \\x16" -', second)


@pytest.fixture
def raw_server():
    """A server that does with its first connection what the test says; its URL is given."""
    listener = socket.create_server(("127.0.0.1", 0))
    jobs = []

    def start(job):
        def run():
            conn, _ = listener.accept()
            with conn:
                conn.settimeout(PATIENCE)
                job(conn)

        jobs.append(gevent.spawn(run))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    gevent.killall(jobs)
    listener.close()


def test_why_a_tunnel_ended_is_told(serve, caplog, raw_server):
    caplog.set_level(logging.INFO, "greensock.upstream")

    def switch(conn):
        conn.recv(65536)
        conn.sendall(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: odd\r\n\r\n")
        conn.recv(1)

    proxy = serve(ReverseProxy, gateway=gateway(raw_server(switch)))
    with socket.create_connection(proxy.address) as sock:
        sock.settimeout(PATIENCE)
        sock.sendall(b"GET /t HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: odd\r\n\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 101 ")
        sock.sendall(b"x")
        assert sock.recv(1) == b""
    wait_until(lambda: "was a tunnel" in caplog.text)
    said = next(each.getMessage() for each in caplog.records if "was a tunnel" in each.getMessage())
    assert re.fullmatch(
        r"web: 127\.0\.0\.1:\d+: request [0-9a-f]{32} \(GET a /t\) was a tunnel for \d+\.\d s, and ended: "
        "(both sides were done|client-left|server-left)",
        said,
    )


def test_what_a_stop_cuts_off_is_told(serve, caplog, raw_server):
    came = Event()

    def be_silent(conn):
        conn.recv(65536)
        came.set()
        conn.recv(1)

    proxy = serve(ReverseProxy, gateway=gateway(raw_server(be_silent)))
    with socket.create_connection(proxy.address) as sock:
        sock.sendall(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        assert came.wait(PATIENCE)
        proxy.stop(0.01)
    assert "(GET a /slow) was cut off: the proxy stopped, and the time to drain was over" in caplog.text
