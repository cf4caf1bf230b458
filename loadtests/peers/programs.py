"""Run nginx and HAProxy as peers: a configuration in a directory of their own, a socket that they inherit."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from loadtests.peers import common, http_common

__all__ = ["become", "haproxy", "nginx", "program"]

#: What all of nginx's configurations begin with: no log, nothing that ends a kept connection.
NGINX = """
{modules}
worker_processes {workers};
daemon off;
{user}
pid {directory}/pid;
error_log stderr error;
events {{ {events} }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    tcp_nodelay on;
    keepalive_requests 1000000000;
    client_max_body_size 0;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
"""
#: What nginx's section of that name says.
EVENTS = "worker_connections 16384;"
HAPROXY = """
global
    nbthread 1
    maxconn 4096
    log stderr local0 err
defaults
    mode http
    option dontlognull
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    timeout http-keep-alive 60s
"""


def program(name: str) -> str | None:
    """Return where a program is; those of Debian's that serve lie where only root looks."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def become(command: list[str], directory: str, sock: socket.socket, environment: Mapping[str, str]) -> None:
    """Replace this process by the program, which inherits the socket; its directory is removed when it has ended."""
    remove_later(directory)
    os.set_inheritable(sock.fileno(), True)
    common.announce(sock)
    os.execve(command[0], command, {**os.environ, **environment})


def remove_later(directory: str) -> None:
    """Fork a process that waits for the end of this one, whatever it becomes, and removes the directory.

    It has a session of its own: neither its memory nor its CPU time is the program's.
    """
    end, held = os.pipe()
    if os.fork():
        os.close(end)
        os.set_inheritable(held, True)  # open until the program and its workers have ended
        return
    os.setsid()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(nowhere, standard)
    os.closerange(3, end)
    os.closerange(end + 1, max(held, nowhere) + 64)
    os.read(end, 1)
    shutil.rmtree(directory, ignore_errors=True)
    os._exit(0)


def nginx(
    configure: Callable[[Path], str], modules: Iterable[Path] = (), ssl: bool = False, events: str = EVENTS
) -> None:
    """Run nginx; ``configure`` makes files in a directory and gives the servers, ``{listen}`` where they listen.

    ``events`` is what its section of that name says, and GREENSOCK_WORKERS how many workers there are.
    """
    sock = http_common.listener(http_common.options())
    host, port = sock.getsockname()[:2]
    name = tempfile.mkdtemp(prefix="greensock-nginx-")
    user = "user root;" if os.geteuid() == 0 else ""  # the directory is ours alone
    loaded = "\n".join(f"load_module {module};" for module in modules)
    workers = os.environ.get("GREENSOCK_WORKERS", "1")
    head = NGINX.format(directory=name, user=user, modules=loaded, workers=workers, events=events)
    body = configure(Path(name)).replace("{listen}", f"listen {host}:{port}{' ssl' * ssl} backlog={common.BACKLOG};")
    path = Path(name) / "nginx.conf"
    path.write_text(f"{head}{body}}}\n")
    command = [program("nginx") or "nginx", "-p", name, "-e", "/dev/null", "-c", str(path)]
    become(command, name, sock, {"NGINX": f"{sock.fileno()};"})


def haproxy(configuration: str) -> None:
    """Run HAProxy; ``{bind}`` in the configuration is where it listens."""
    sock = http_common.listener(http_common.options())
    name = tempfile.mkdtemp(prefix="greensock-haproxy-")
    path = Path(name) / "haproxy.cfg"
    path.write_text(HAPROXY + configuration.replace("{bind}", f"bind fd@{sock.fileno()}"))
    become([program("haproxy") or "haproxy", "-db", "-f", str(path)], name, sock, {})
