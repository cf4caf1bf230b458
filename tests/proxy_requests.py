"""Requests through a proxy, for its tests."""

from __future__ import annotations

import socket

from conftest import read_all


def ask(sock, text, body=b""):
    """Send a request that closes and return status and everything that comes."""
    sock.sendall(text.replace("\n", "\r\n").encode() + body)
    answer = read_all(sock)
    return int(answer[9:12]), answer


CLOSE = "Host: a\nConnection: close\n\n"


def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]
