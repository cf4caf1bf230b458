"""Users of the reverse proxy for Locust: pages, uploads, downloads, WebSocket, and every body checked.

    python -m loadtests.load_origin --bind 127.0.0.1:9000
    python -m examples.reverse_proxy --listen 127.0.0.1:8080 --upstream http://127.0.0.1:9000
    locust -f loadtests/locustfile_http.py --host http://127.0.0.1:8080 -s 10

``-s`` gives users the time to finish: without it Locust kills them within a request. ``python -m loadtests.load http``
starts both servers, passes what is needed and ends all. ``--exclude-tags websocket`` is for a proxy without it.
"""

from __future__ import annotations

import base64
import hashlib
import os
import random
from socket import create_connection
from typing import Any
from urllib.parse import urlsplit

import gevent
from locust import FastHttpUser, between, events, tag, task
from locust.env import Environment
from locust.stats import CSV_STATS_INTERVAL_SEC

from loadtests.locust_pages import page, receipt
from loadtests.peers.http_common import BLOCK
from loadtests.websocket import BINARY, CLOSE, accept_key, frame, read_frame

__all__ = ["ProxyUser", "WrongAnswer"]

#: Seconds that an answer may take.
PATIENCE = 10.0
#: Bytes of an upload, at most.
UPLOAD = 200_000
#: Messages on a WebSocket.
MESSAGES = 5


class WrongAnswer(AssertionError):
    """Another answer than the request asked for."""


class ProxyUser(FastHttpUser):
    """Asks for what only its own request can be answered with, and compares every byte."""

    host = "http://127.0.0.1:8080"
    wait_time = between(0.01, 0.1)
    network_timeout = connection_timeout = PATIENCE
    #: A failure is a failure: nothing is tried again.
    max_retries = 0

    def expect(self, name: str, path: str, expected: bytes, method: str = "GET", **options: Any) -> None:
        """Make a request, and count another answer as a failure; few words, as Locust counts failures by them."""
        with self.client.request(method, path, name=name, catch_response=True, **options) as answer:
            if answer.status_code != 200:
                answer.failure(f"{name}: status {answer.status_code}")
            elif answer.content != expected:
                answer.failure(WrongAnswer(f"{name}: the body is not the one asked for"))

    def any_page(self) -> str:
        return f"/page/{random.getrandbits(64):x}?{random.getrandbits(random.randrange(1, 500)):x}"

    @task(10)
    def page(self) -> None:
        path = self.any_page()
        self.expect("page", path, page(path))

    @task(3)
    def page_and_close(self) -> None:
        path = self.any_page()
        self.expect("page, close", path, page(path), headers={"Connection": "close"})

    @task(3)
    def upload(self) -> None:
        body = os.urandom(random.randrange(UPLOAD))
        expected = receipt(len(body), hashlib.sha256(body).hexdigest())
        self.expect("upload", "/upload", expected, "POST", data=body)

    @task(1)
    def download(self) -> None:
        self.expect("download", "/stream/2", BLOCK * 2)

    @task(1)
    def download_in_chunks(self) -> None:
        self.expect("download, chunks", "/chunks/2", BLOCK * 2)

    @tag("websocket")
    @task(1)
    def websocket(self) -> None:
        with self.environment.events.request.measure("WS", "WebSocket") as request:
            request["response_length"] = self.talk()

    def talk(self) -> int:
        """Exchange some messages on a WebSocket of its own; return their bytes."""
        place = urlsplit(str(self.host))
        total = 0
        with create_connection((place.hostname, place.port or 80), PATIENCE) as sock, sock.makefile("rb") as replies:

            def read(count: int) -> bytes:
                data = replies.read(count)
                if len(data) < count:
                    raise ConnectionError("WebSocket: closed within a message")
                return data

            sock.sendall(self.handshake(place.netloc))
            self.check_handshake(replies)
            for _ in range(MESSAGES):
                message = os.urandom(random.randrange(2000))
                sock.sendall(frame(BINARY, message, mask=True))
                if read_frame(read) != (BINARY, message):
                    raise WrongAnswer("WebSocket: another message came back")
                total += len(message)
            sock.sendall(frame(CLOSE, b"", mask=True))
            if read_frame(read) != (CLOSE, b"") or replies.read():
                raise WrongAnswer("WebSocket: its end is not as it should be")
        return total

    def handshake(self, authority: str) -> bytes:
        self.key = base64.b64encode(os.urandom(16)).decode()
        lines = [
            "GET /echo HTTP/1.1",
            f"Host: {authority}",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {self.key}",
        ]
        return "".join(f"{line}\r\n" for line in [*lines, ""]).encode()

    def check_handshake(self, replies: Any) -> None:
        status = replies.readline().decode()
        if not status.startswith("HTTP/1.1 101 "):
            raise WrongAnswer(f"WebSocket: {status.strip() or 'closed'}")
        fields = {}
        while line := replies.readline().decode().strip():
            name, _, value = line.partition(":")
            fields[name.lower()] = value.strip()
        if fields.get("sec-websocket-accept") != accept_key(self.key):
            raise WrongAnswer("WebSocket: another key was accepted")


def complete_the_report(environment: Environment, **_: object) -> None:
    """Give Locust, which writes its CSV once a second, the time to write what came last."""
    if environment.parsed_options and environment.parsed_options.csv_prefix:
        gevent.sleep(CSV_STATS_INTERVAL_SEC + 0.2)


events.quitting.add_listener(complete_the_report)
