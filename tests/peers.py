"""Programs of others, started by the tests: servers behind the proxy, clients in front of it, and the proxy itself."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE, wait_until

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ROOT / "tests" / "peer_programs"

#: Which of Debian's packages a program is in.
PACKAGES = {"nginx": "nginx-light"}


def program(name: str) -> str:
    """Return where a program is; skip the test if it is not there."""
    path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if path is None:
        pytest.skip(f"{name} is not installed (Debian's package {PACKAGES.get(name, name)})")
    return path


def listening() -> socket.socket:
    """Return a listening socket for a program to inherit: no port is free for long."""
    return socket.create_server(("127.0.0.1", 0), backlog=128)


@contextlib.contextmanager
def started(
    command: list[str], directory: Path, ready: str = "", *, fds: tuple[int, ...] = (), **environment: str
) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], str], str]]:
    """Run a program; give its process, what it says, and what ``ready`` found in that. It is ended after the block."""
    said = directory / "said"
    with open(said, "wb") as output:
        process = subprocess.Popen(
            command,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=fds,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "HOME": str(directory), **environment},
            start_new_session=True,
        )

    def says() -> str:
        return said.read_text(errors="replace")

    def match() -> re.Match[str] | None:
        found = re.search(ready, says())
        assert found or process.poll() is None, f"{command} ended: {says()}"
        return found

    try:
        found = wait_until(match)
        yield process, says, found.group(1) if found.groups() else found.group()
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(PATIENCE / 2)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(PATIENCE)


# -- servers


@contextlib.contextmanager
def flask(directory: Path, *, bind: str = "127.0.0.1:0", worker: str = "sync") -> Iterator[str]:
    """Run ``flask_app.py`` under gunicorn, with its default worker; give the URL, or what else it listens on."""
    pytest.importorskip("flask")
    pytest.importorskip("gunicorn")
    command = [sys.executable, "-m", "gunicorn", "--bind", bind, "--worker-class", worker, "--workers", "1"]
    command += ["--worker-tmp-dir", str(directory), "--chdir", str(PROGRAMS), "flask_app:app"]
    with started(command, directory, r"Listening at: (\S+)(?s:.*)Booting worker") as (_, _, url):
        yield url


NGINX = """
daemon off; worker_processes 1; pid nginx.pid; error_log stderr warn; {user}
events {{ worker_connections 256; }}
http {{
    access_log off; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi; scgi_temp_path scgi; keepalive_requests 100000;
    types {{ text/html html; text/css css; text/javascript js; text/plain txt; image/png png; }}
    default_type application/octet-stream;
    server {{
        listen 127.0.0.1:{port}; root files; index index.html; absolute_redirect off;
        location /gzip/ {{ alias files/; gzip on; gzip_proxied any; gzip_types *; gzip_min_length 1; }}
        location /chunked/ {{ alias files/; ssi on; ssi_types *; }}
        location /teapot {{ return 418 "short and stout"; }}
        location /seen {{ return 200 "$remote_addr $http_host $http_x_forwarded_for $http_connection"; }}
        location /connection {{ return 200 "$connection\\n"; }}
        location /hang-up {{ return 444; }}
        location /brief {{ keepalive_timeout 2ms; return 200 "brief"; }}
        location /five {{ keepalive_requests 5; return 200 "five"; }}
        location /small-bodies {{ client_max_body_size 1k; proxy_pass http://127.0.0.1:{port}; }}
    }}
    server {{
        listen 127.0.0.1:{introduced} proxy_protocol;
        location / {{ return 200 "$proxy_protocol_addr $proxy_protocol_port\\n"; }}
    }}
}}
"""


@contextlib.contextmanager
def nginx(directory: Path) -> Iterator[tuple[str, str]]:
    """Run nginx over ``directory/files``; give its URL, and the one where connections begin with a PROXY header."""
    command = [program("nginx"), "-e", "stderr", "-p", str(directory), "-c", str(directory / "nginx.conf")]
    user = "user root;" if os.geteuid() == 0 else ""
    with listening() as usual, listening() as introduced:
        ports = {"port": usual.getsockname()[1], "introduced": introduced.getsockname()[1]}
        (directory / "nginx.conf").write_text(NGINX.format(user=user, **ports))
        fds = usual.fileno(), introduced.fileno()
        # That variable is how it hands its sockets over to a newer one of itself.
        with started(command, directory, "using inherited", fds=fds, NGINX="".join(f"{fd};" for fd in fds)):
            yield tuple("http://{}:{}".format(*sock.getsockname()) for sock in (usual, introduced))


@contextlib.contextmanager
def http_server(directory: Path) -> Iterator[str]:
    """Run ``python -m http.server`` over ``directory/files``; give its URL."""
    command = [sys.executable, "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", "files"]
    with started(command, directory, r"port (\d+)") as (_, _, port):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def wsgiref_server(directory: Path) -> Iterator[str]:
    """Run ``wsgiref_app.py``, which answers as HTTP/1.0 does: the end of the connection is that of the body."""
    with started([sys.executable, str(PROGRAMS / "wsgiref_app.py")], directory, r"port (\d+)") as (_, _, port):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def websocket_server(directory: Path) -> Iterator[str]:
    """Run ``websocket_echo.py``; give its URL."""
    pytest.importorskip("websockets", minversion="14")
    with started([sys.executable, str(PROGRAMS / "websocket_echo.py")], directory, r"port (\d+)") as (_, _, port):
        yield f"http://127.0.0.1:{port}"


HAPROXY = """
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
"""


@contextlib.contextmanager
def haproxy(directory: Path, configuration: str, *fds: int) -> Iterator[None]:
    """Run HAProxy; the configuration binds the sockets given as ``fd@N``."""
    path = directory / "haproxy.cfg"
    path.write_text(HAPROXY + configuration)
    with started([program("haproxy"), "-db", "-f", str(path)], directory, fds=fds):
        yield


# -- the proxy


class Proxy:
    """The proxy as a program."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._log = log

    def logged(self) -> list[dict[str, Any]]:
        """Return the lines of the access log so far."""
        return [json.loads(line) for line in self._log.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def logged_like(self, target: str) -> list[dict[str, Any]]:
        """Return the lines about targets that match."""
        return [line for line in self.logged() if re.fullmatch(target, line["target"])]

    def logged_of(self, target: str) -> dict[str, Any]:
        """Return the last line about a target, as soon as there is one."""
        return wait_until(lambda: self.logged_like(re.escape(target)))[-1]

    def descriptors(self) -> Counter[str]:
        """Count its sockets and pipes."""
        kinds: Counter[str] = Counter()
        for path in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                kinds[os.readlink(path).partition(":")[0]] += 1
        return Counter({kind: kinds[kind] for kind in ("socket", "pipe")})


CONFIGURATION = """
listen = ["127.0.0.1:0"]
log = {{ path = "{log}", format = "json" }}
{top}
{upstreams}
{routes}
"""


@contextlib.contextmanager
def proxied(
    directory: Path, upstreams: dict[str, str], routes: str = "", top: str = "", warns: str = ""
) -> Iterator[Proxy]:
    """Run the proxy before upstreams: by name, the URL of its server or TOML. Without routes all goes to the last.

    In the end it must have closed what it opened, have said nothing but what matches ``warns``, and end well.
    """
    log, path = directory / "access.log", directory / "proxy.toml"
    log.touch()
    groups = [
        f"[upstreams.{name}]\nidle_timeout = 0.5\n" + (said if "=" in said else f'servers = ["{said}"]\n')
        for name, said in upstreams.items()
    ]
    routes = routes or f'[[routes]]\nupstream = "{list(upstreams)[-1]}"\n'
    path.write_text(CONFIGURATION.format(log=log, top=top, upstreams="\n".join(groups), routes=routes))
    command = [sys.executable, "-W", "error", "-m", "examples.reverse_proxy", "--config", str(path)]
    ready = r"^listening on 127.0.0.1:(\d+)\n"
    with started(command, directory, ready, PYTHONPATH=str(ROOT)) as (process, says, port):
        proxy = Proxy(process, int(port), log)
        before = proxy.descriptors()
        yield proxy
        wait_until(lambda: proxy.descriptors() == before)
        process.terminate()
        assert process.wait(PATIENCE) == 0
        assert re.fullmatch(rf"listening on 127.0.0.1:{port}\n{warns}", says()), says()


# -- clients


def run(name: str, *arguments: str, status: int | tuple[int, ...] = 0, **options: Any) -> bytes:
    """Run a client to its end, which must be with that exit status or one of those; return its output."""
    done = subprocess.run([program(name), *arguments], capture_output=True, timeout=6 * PATIENCE, **options)
    wanted = status if isinstance(status, tuple) else (status,)
    assert done.returncode in wanted, f"{name} {' '.join(arguments)}: {done.returncode}, {done.stderr.decode()}"
    return done.stdout


def curl(*arguments: str, status: int | tuple[int, ...] = 0, **options: Any) -> bytes:
    """Run curl, without the user's settings."""
    return run("curl", "-q", "-sS", "--noproxy", "*", "-m", "20", *arguments, status=status, **options)
