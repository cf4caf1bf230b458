"""gunicorn's documented settings, one by one, each against a gunicorn that runs: it does what is documented."""

from __future__ import annotations

import os
import re
import signal
import socket
import time

import pytest
from arbiters import PROGRAMS, Answered, arbiter, refused
from conftest import PATIENCE, read_all, wait_until
from gunicorn.config import Config
from served import once
from tls_peers import authority, client_tls, issued, write_files

from greensock.gunicorn.settings import RefusedSettings, check, notes, wsgi_options
from greensock.http import HTTPClient
from greensock.http.server.spool import IN_MEMORY

pytestmark = once


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text))


#: Settings that are refused.
REFUSED = [
    ("protocol", "uwsgi", "'http' expected"),
    ("http_protocols", "h2,h1", "HTTP/2 is not there yet"),
    ("http_parser", "python", "'auto' expected"),
    ("permit_obsolete_folding", True, "False expected"),
    ("strip_header_spaces", True, "False expected"),
    ("casefold_http_method", True, "False expected"),
    ("reload_engine", "inotify", "'auto' or 'poll' expected"),
    ("tmp_upload_dir", "/none", "a folder expected"),
    ("certfile", "none.pem", "No such file"),
    ("keyfile", "none.pem", "PEM files of a certificate and its key expected"),
]
#: What the master does by itself.
MASTERS = words(
    "config wsgi_app bind backlog workers worker_class preload_app reuse_port chdir daemon raw_env pidfile "
    "worker_tmp_dir user group umask initgroups pythonpath paste raw_paste_global_conf proc_name default_proc_name "
    "check_config print_config spew reload_extra_files enable_backlog_metric on_starting on_reload when_ready pre_fork "
    "post_fork child_exit worker_exit nworkers_changed on_exit pre_exec control_socket control_socket_mode "
    "control_socket_disable dirty_apps dirty_workers dirty_timeout dirty_threads dirty_graceful_timeout "
    "on_dirty_starting dirty_post_fork dirty_worker_init dirty_worker_exit"
)
#: What the logger does.
LOGGERS = words(
    "accesslog access_log_format errorlog loglevel capture_output logger_class logconfig logconfig_dict logconfig_json "
    "syslog_addr syslog syslog_prefix syslog_facility enable_stdio_inheritance statsd_host dogstatsd_tags "
    "statsd_prefix disable_redirect_access_to_syslog"
)
#: What is done here.
OURS = words(
    "worker_connections max_requests max_requests_jitter timeout graceful_timeout keepalive limit_request_line "
    "limit_request_fields limit_request_field_size reload reload_engine sendfile secure_scheme_headers "
    "forwarded_allow_ips forwarder_headers header_map pre_request post_request post_worker_init worker_int "
    "worker_abort certfile keyfile ca_certs cert_reqs ciphers ssl_context proxy_protocol proxy_allow_ips "
    "tmp_upload_dir permit_unconventional_http_method"
)
#: What means nothing here: for other workers, for HTTP/2 where that is refused, or what we do or permit anyway.
WITHOUT_EFFECT = words(
    "threads asgi_loop asgi_lifespan asgi_disconnect_grace_period websocket_max_message_size "
    "root_path uwsgi_allow_ips ssl_version suppress_ragged_eofs do_handshake_on_connect "
    "http2_cleartext http2_max_concurrent_streams http2_initial_window_size http2_max_frame_size "
    "http2_max_header_list_size permit_unconventional_http_version"
)
KNOWN = MASTERS | LOGGERS | OURS | WITHOUT_EFFECT | {name for name, _, _ in REFUSED}
#: Seconds that a connection is seen to be kept.
A_WHILE = 0.3


def is_cut(sock: socket.socket) -> bool:
    """Whether the connection has ended without an answer: by a reset, or by FIN where its process was killed."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


# -- server socket


def test_bind(tmp_path):
    unix = tmp_path / "socket"
    settings = f"bind = ['127.0.0.1:0', '127.0.0.1:0', 'unix:{unix}']\numask = 0o117\nworker_connections = 3\n"
    with arbiter(tmp_path, settings) as master:
        for which in 0, 1:
            host, port = master.addresses[which]
            environ = master.ask("/environ", which=which).environ
            assert (environ["SERVER_NAME"], environ["SERVER_PORT"], environ["REMOTE_ADDR"]) == (host, str(port), host)
        environ = master.ask("/environ", "X-Forwarded-Proto: https\r\n", which=2).environ
        assert (environ["SERVER_NAME"], environ["REMOTE_ADDR"], environ["wsgi.url_scheme"]) == ("a", "", "https")
        assert unix.stat().st_mode & 0o777 == 0o660
        # worker_connections is for all of them together.
        held = [master.connect(which) for which in (0, 1, 2)]
        for each in held:
            each.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert each.recv(65536).endswith(b"hello")
        with master.connect() as more:
            more.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            more.settimeout(A_WHILE)
            with pytest.raises(TimeoutError):
                more.recv(1)
            for each in held:
                each.close()
            more.settimeout(PATIENCE)
            assert read_all(more).endswith(b"hello")
        assert master.stop() == 0
    assert not unix.exists()


def listening(port: int) -> int:
    """Return how many sockets listen on the port."""
    with open("/proc/net/tcp") as table:
        return sum(f":{port:04X} 00000000:0000 0A" in line for line in table)


def test_reuse_port_and_workers(tmp_path):
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with arbiter(tmp_path, f"reuse_port = True\nworkers = 2\nbind = '127.0.0.1:{port}'\n") as master:
            wait_until(lambda: listening(port) == 2)
            master.log = lambda: f"Listening at: http://127.0.0.1:{port} (1)"
            assert master.ask("/environ").environ["wsgi.multiprocess"] == "True"


# -- worker processes


def test_max_requests_and_jitter(tmp_path):
    with arbiter(tmp_path, "max_requests = 4\nmax_requests_jitter = 2\n") as master:
        # One that was told to end serves on until the next one has begun, which takes what it takes.
        pids = []
        wait_until(lambda: pids.append(master.ask().pid) or len(set(pids)) >= 3, PATIENCE)
        counts = [pids.count(pid) for pid in dict.fromkeys(pids)]
        assert all(count >= 4 for count in counts[:-1]), counts
        master.wait_for("Autorestarting worker after current request.", 2)


def test_timeout_kills_a_worker_that_hangs_and_the_log_says_where(tmp_path):
    hook = "def worker_abort(worker):\n    worker.log.info('the hook worker_abort')\n"
    with arbiter(tmp_path, "timeout = 1\n" + hook) as master:
        before = master.ask().pid
        with master.connect() as waiting, master.connect() as hung:
            waiting.sendall(b"GET /sleep?60 HTTP/1.1\r\nHost: a\r\n\r\n")
            hung.sendall(b"GET /busy?60 HTTP/1.1\r\nHost: a\r\n\r\n")
            assert is_cut(hung)
            assert is_cut(waiting)
            assert master.ask().pid != before
        log = master.log()
        assert "WORKER TIMEOUT" in log
        assert re.search(r"hangs here:\n(.*\n)*?.*in busy\n", log)
        assert re.search(r"All greenlets of the worker(.*\n)*?.*time.sleep\(float\(query\)\)", log)
        assert "the hook worker_abort" in log


def test_a_request_that_waits_is_no_worker_that_hangs(tmp_path):
    with arbiter(tmp_path, "timeout = 1\n") as master:
        assert master.ask("/sleep?1.6").status == 200
        assert "WORKER TIMEOUT" not in master.log()


def test_graceful_timeout(tmp_path):
    with arbiter(tmp_path, "graceful_timeout = 1\n") as master, master.connect() as long, master.connect() as short:
        long.sendall(b"GET /sleep?60 HTTP/1.1\r\nHost: a\r\n\r\n")
        short.sendall(b"GET /sleep?0.5 HTTP/1.1\r\nHost: a\r\n\r\n")
        assert master.ask().status == 200  # both have been taken, then
        began = time.monotonic()
        assert master.stop() == 0
        assert 0.8 < time.monotonic() - began < 3
        answer = read_all(short)
        assert answer.endswith(b"hello")
        assert b"Connection: close\r\n" in answer
        assert is_cut(long)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_quick_shutdown(tmp_path, number):
    hook = "def worker_int(worker):\n    worker.log.info('the hook worker_int')\n"
    with arbiter(tmp_path, hook) as master, master.connect() as sock:
        sock.sendall(b"GET /sleep?60 HTTP/1.1\r\nHost: a\r\n\r\n")
        assert master.ask().status == 200
        began = time.monotonic()
        master.send(number)
        assert master.process.wait(PATIENCE) == 0
        assert time.monotonic() - began < 2
        assert "the hook worker_int" in master.log()


def test_keepalive(tmp_path):
    with arbiter(tmp_path, "keepalive = 1\n") as master, master.connect() as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"Connection" not in sock.recv(65536)
        began = time.monotonic()
        assert sock.recv(1) == b""
        assert 0.8 < time.monotonic() - began < 2
    with arbiter(tmp_path / "2", "keepalive = 0\n") as master, master.connect() as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"\r\nConnection: close\r\n" in read_all(sock)


# -- security


def test_limits_of_requests(tmp_path):
    settings = "limit_request_line = 100\nlimit_request_fields = 4\nlimit_request_field_size = 60\n"
    with arbiter(tmp_path, settings) as master:
        for method in "GET", "BREW":
            rest = len(method) + len("  HTTP/1.1")
            assert master.ask("/" + "a" * (100 - rest - 1), method=method).status == 200
            assert master.ask("/" + "a" * (100 - rest), method=method).status == 414
        assert master.ask(fields="A: b\r\nC: d\r\n").status == 200
        assert master.ask(fields="A: b\r\nC: d\r\nE: f\r\n").status == 431
        assert master.ask(fields=f"A: {'b' * 55}\r\n").status == 200
        assert master.ask(fields=f"A: {'b' * 56}\r\n").status == 431
        for method in "brew", "QR", "A#B", "A" * 21:
            assert master.ask(method=method).status == 400
        assert "Invalid request from ip=127.0.0.1: " in master.log()
    settings = "limit_request_line = 0\nlimit_request_field_size = 0\npermit_unconventional_http_method = True\n"
    with arbiter(tmp_path / "2", settings) as master:
        assert master.ask("/" + "a" * 50_000, f"A: {'b' * 50_000}\r\n").status == 200
        assert "limit_request_line=0 means 1048576 bytes here" in master.log()
        assert master.ask(method="qr").status == 200
        assert master.ask(method="get").status == 501


# -- what a proxy in front says

SECURE = "X-Forwarded-Proto: https\r\n"
ENVIRON = b"GET /environ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


def test_a_proxy_that_is_trusted(tmp_path):
    settings = "forwarded_allow_ips = '10.0.0.0/8,127.0.0.0/8'\nforwarder_headers = 'SCRIPT_NAME,REMOTE_USER'\n"
    with arbiter(tmp_path, settings) as master:
        scheme = lambda fields: master.ask("/environ", fields).environ["wsgi.url_scheme"]  # noqa: E731
        assert scheme("") == "http"
        assert scheme(SECURE) == "https"
        assert scheme("X-Forwarded-Proto: HTTPS\r\n") == "http"
        assert scheme("X-Forwarded-Ssl: on\r\n") == "https"
        assert scheme(SECURE + "X-Forwarded-Ssl: on\r\n") == "https"
        assert master.ask("/environ", SECURE + "X-Forwarded-Ssl: off\r\n").status == 400
        environ = master.ask("/app/environ", "SCRIPT_NAME: /app\r\nREMOTE_USER: eve\r\nX_Other: no\r\n").environ
        assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("/app", "/environ")
        assert environ["HTTP_REMOTE_USER"] == "eve"
        assert "HTTP_X_OTHER" not in environ
        assert master.ask("/environ", "SCRIPT_NAME: /app\r\n").status == 500


def test_a_peer_that_is_not_trusted_and_header_map(tmp_path):
    with arbiter(tmp_path, "forwarded_allow_ips = '10.1.1.1'\nheader_map = 'refuse'\n") as master:
        environ = master.ask("/environ", SECURE).environ
        assert (environ["wsgi.url_scheme"], environ["HTTP_X_FORWARDED_PROTO"]) == ("http", "https")
        assert master.ask("/environ", "REMOTE_USER: eve\r\n").status == 400
    settings = "forwarded_allow_ips = '*'\nheader_map = 'dangerous'\nsecure_scheme_headers = {'X-FRONT': 'tls'}\n"
    with arbiter(tmp_path / "2", settings) as master:
        environ = master.ask("/environ", "X_Other: yes\r\nX-Other: no\r\nX-Front: tls\r\n" + SECURE).environ
        assert sorted(environ["HTTP_X_OTHER"].split(",")) == ["no", "yes"]
        assert environ["wsgi.url_scheme"] == "https"


def test_proxy_protocol(tmp_path):
    unix = tmp_path / "socket"
    settings = f"proxy_protocol = True\nproxy_allow_ips = '10.0.0.0/8'\nbind = ['127.0.0.1:0', 'unix:{unix}']\n"
    settings += "accesslog = '-'\naccess_log_format = 'seen %(h)s %(s)s'\n"
    settings += "def post_request(worker, req, environ, resp):\n    worker.log.info('told %s', "
    settings += "req.proxy_protocol_info)\n"
    with arbiter(tmp_path, settings) as master:
        for which, status in (1, 200), (0, 403):
            with master.connect(which) as sock:
                sock.sendall(b"PROXY TCP4 192.0.2.7 192.0.2.8 5555 80\r\n" + ENVIRON)
                answered = Answered(read_all(sock))
                assert answered.status == status
                if which:
                    environ = answered.environ
        assert (environ["REMOTE_ADDR"], environ["PROXY_PROTOCOL"]) == ("192.0.2.7", "TCP4")
        assert master.ask("/environ").environ["REMOTE_ADDR"] == "127.0.0.1"
        wait_until(lambda: "seen 127.0.0.1 200" in (tmp_path / "stdout").read_text())
        assert "seen 192.0.2.7 200" in (tmp_path / "stdout").read_text()
        assert "told {'proxy_protocol': 'TCP4', 'client_addr': '192.0.2.7', 'client_port': 5555" in master.log()
        assert "a PROXY header of 127.0.0.1, which is not in proxy_allow_ips" in master.log()


# -- server mechanics


def test_the_process(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    settings = f"chdir = {str(other)!r}\nraw_env = ['GREETING=hello']\npreload_app = True\nsendfile = False\n"
    settings += f"pidfile = {str(tmp_path / 'pid')!r}\nworker_tmp_dir = '/dev/shm'\nproc_name = 'site'\n"
    settings += f"spew = False\ninitgroups = False\ntmp_upload_dir = {str(other)!r}\n"
    with arbiter(tmp_path, settings) as master:
        pid, imported_by, _, cwd, greeting, path = eval(master.ask("/process").text)
        assert (imported_by, cwd, greeting) == (master.process.pid, str(other), "hello")
        assert str(other) in path
        assert int((tmp_path / "pid").read_text()) == master.process.pid != pid
        environ = master.ask("/environ").environ
        assert "NoSendfile" in environ["wsgi.file_wrapper"]
        assert environ["SERVER_SOFTWARE"].startswith("greensock/")
        assert b"def application" in master.ask("/file").body
        with master.connect() as sock:
            sock.sendall(b"POST /spooled HTTP/1.1\r\nHost: a\r\nConnection: close\r\n")
            sock.sendall(b"Transfer-Encoding: chunked\r\n\r\n")
            sock.sendall(b"%x\r\n%b\r\n0\r\n\r\n" % (IN_MEMORY + 1, bytes(IN_MEMORY + 1)))
            assert Answered(read_all(sock)).text.startswith(f"{other}/")
        assert master.stop() == 0
    assert not (tmp_path / "pid").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become somebody else")
@pytest.mark.skipif(
    any(place.stat().st_mode & 0o5 != 0o5 for place in (PROGRAMS, *PROGRAMS.parents)),
    reason="nobody else may read the programs of the tests where they lie",
)
def test_user_and_group(tmp_path):
    with arbiter(tmp_path, "user = 65534\ngroup = 65534\n") as master:
        assert eval(master.ask("/process").text)[2] == 65534
        assert master.ask("/file").status == 200


def test_reload(tmp_path):
    (tmp_path / "changing.py").write_text(
        "import gunicorn_site\ndef app(*given): return gunicorn_site.application(*given)\n"
    )
    with arbiter(tmp_path, "reload = True\nwsgi_app = 'changing:app'\n") as master:
        assert master.ask().text == "hello"
        (tmp_path / "changing.py").write_text(
            "def app(environ, start_response):\n    start_response('200 OK', [])\n    return [b'changed']\n"
        )
        wait_until(lambda: master.ask().text == "changed")
        assert "Worker reloading: " in master.log()


# -- TLS


def test_tls(tmp_path):
    write_files(tmp_path, issued("localhost", "127.0.0.1"))
    authority().cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    settings = f"certfile = '{tmp_path}/cert.pem'\nkeyfile = '{tmp_path}/key.pem'\n"
    settings += f"ca_certs = '{tmp_path}/ca.pem'\ncert_reqs = ssl.CERT_OPTIONAL\n"
    with arbiter(tmp_path / "site", "import ssl\n" + settings) as master:
        base = "https://{}:{}".format(*master.addresses[0])
        with HTTPClient(tls=client_tls()) as client, client.get(base + "/environ") as answer:
            environ = Answered(b"HTTP/1.1 200\r\n\r\n" + answer.read_all()).environ
        assert environ["wsgi.url_scheme"] == "https"
        with master.connect() as plain:
            plain.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert read_all(plain).startswith(b"HTTP/1.1 400 ")
        assert master.stop() == 0


# -- refused


def test_every_setting_that_cannot_be_served_is_refused():
    cfg = Config()
    check(cfg)
    assert notes(cfg) == []
    assert wsgi_options(cfg)["idle_timeout"] == 2
    for name, value, words in REFUSED:
        cfg = Config()
        if name not in cfg.settings:
            continue  # an older gunicorn
        cfg.set("reload", True)
        cfg.set(name, value)
        with pytest.raises(RefusedSettings, match=rf"(?m)^ +{name}=.*: .*{words}"):
            check(cfg)


def test_every_setting_of_gunicorn_is_thought_of():
    """A new version may bring more: then it is to be decided what they mean."""
    assert not set(Config().settings) - KNOWN


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("certfile = 'a.pem'\nkeyfile = 'b.pem'\n", "certfile='a.pem', keyfile='b.pem': [SSL] PEM lib"),
        ("protocol = 'uwsgi'\n", "protocol='uwsgi': 'http' expected"),
    ],
)
def test_a_setting_that_is_refused(tmp_path, settings, words):
    unix = tmp_path / "socket"
    for name in "a.pem", "b.pem":
        (tmp_path / name).touch()
    settings += f"bind = 'unix:{unix}'\npidfile = {str(tmp_path / 'pid')!r}\n"
    status, said = refused(tmp_path, settings)
    assert status == 1
    assert words in said
    assert "Traceback" not in said
    assert not unix.exists()
    assert not (tmp_path / "pid").exists()
