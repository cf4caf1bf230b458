"""Users of the reverse proxy for Locust: pages, uploads, downloads, WebSocket, and every body checked.

    python -m loadtests.load_origin --bind 127.0.0.1:9000
    python -m examples.reverse_proxy --listen 127.0.0.1:8080 --upstream http://127.0.0.1:9000
    locust -f loadtests/locustfile_http.py --host http://127.0.0.1:8080 -s 10

``-s`` gives users the time to finish: without it Locust kills them within a request. ``python -m loadtests.load http``
starts both servers, passes what is needed and ends all. ``ProxyUser`` alone, named behind the options, is for a proxy
without WebSockets.
"""

from __future__ import annotations

import hashlib
import os
import random
from contextlib import suppress
from typing import Any

import gevent
from locust import between, events, tag, task
from locust.env import Environment
from locust.stats import CSV_STATS_INTERVAL_SEC

from greensock.http import WebSocketClosed
from greensock.locust import HTTPUser, MeasuredExchange, WebSocketUser
from loadtests.locust_pages import page, receipt
from loadtests.peers.http_common import BLOCK

__all__ = ["ProxyUser", "TalkingUser", "WrongAnswer"]

#: Seconds that an answer may take.
PATIENCE = 10.0
#: Bytes of an upload, at most.
UPLOAD = 200_000
#: Messages on a WebSocket.
MESSAGES = 5


class WrongAnswer(AssertionError):
    """Another answer than the request asked for."""


class ProxyUser(HTTPUser):
    """Asks for what only its own request can be answered with, and compares every byte."""

    host = "http://127.0.0.1:8080"
    weight = 17
    wait_time = between(0.01, 0.1)
    network_timeout = connection_timeout = PATIENCE

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


class TalkingUser(WebSocketUser):
    """Exchanges some messages on a WebSocket, closes it, and begins anew."""

    host = ProxyUser.host
    path = "/echo"
    wait_time = between(0.01, 0.1)
    network_timeout = connection_timeout = PATIENCE

    @tag("websocket")
    @task
    def talk(self) -> None:
        for number in range(MESSAGES):
            message = os.urandom(random.randrange(2000))
            with self.exchange("WebSocket", message) as reply:
                if reply.message != message:
                    raise WrongAnswer("WebSocket: another message came back")
                if number == MESSAGES - 1:
                    self.end(reply)
        self.disconnect()

    def end(self, exchange: MeasuredExchange) -> None:
        """Close, and see the server close, in good order and without a further message."""
        self.websocket.close()
        with suppress(WebSocketClosed):
            exchange.receive()
        if self.websocket.close_code != 1000:
            raise WrongAnswer("WebSocket: its end is not as it should be")


def complete_the_report(environment: Environment, **_: object) -> None:
    """Give Locust, which writes its CSV once a second, the time to write what came last."""
    if environment.parsed_options and environment.parsed_options.csv_prefix:
        gevent.sleep(CSV_STATS_INTERVAL_SEC + 0.2)


events.quitting.add_listener(complete_the_report)
