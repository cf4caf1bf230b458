"""Users for Locust of each kind, against the other examples.

    python -m examples.hello_http --bind 127.0.0.1:8000
    python -m examples.lines --bind 127.0.0.1:5000
    python -m examples.live_chat --bind 127.0.0.1:8001
    locust -f examples/locustfile.py --processes 2 -s 10

and open http://localhost:8089, or add ``--headless -u 20 -t 30s``; ``locust -f examples/locustfile.py Keeper`` runs one
of them. Needs ``pip install 'greensock[locust]'``. HELLO, LINES, CHAT and ECHO in the environment say other addresses.
"""

from __future__ import annotations

import json
import os
import random
from typing import Any

from locust import between, task

from greensock import Lines
from greensock.locust import ConnectionUser, DatagramUser, HTTPUser, WebSocketUser

__all__ = ["Caller", "Chatter", "Keeper", "Visitor"]


class Visitor(HTTPUser):
    """FastHttpUser's interface; only the import is another."""

    host = os.environ.get("HELLO", "http://127.0.0.1:8000")
    wait_time = between(0.05, 0.15)
    network_timeout = connection_timeout = 10.0

    @task(3)
    def page(self) -> None:
        with self.client.get("/", catch_response=True) as answer:
            if answer.ok and not str(answer.text).startswith("hello, "):
                answer.failure("another page")

    @task
    def upload(self) -> None:
        body = bytes(random.randrange(100_000))
        with self.rest("POST", "/", name="upload", data=body) as answer:
            assert answer.js == {"bytes": len(body)}, "another number"

    @task
    def nowhere(self) -> None:
        with self.client.get("/nowhere", catch_response=True) as answer:
            if answer.status_code == 404:
                answer.success()


class Keeper(ConnectionUser):
    """Ten times a second, and measured from when each task was due: a server that stalls shows in all of them."""

    host = os.environ.get("LINES", "127.0.0.1:5000")
    framer = Lines()
    rate = 10.0
    network_timeout = 10.0

    @task
    def set_and_get(self) -> None:
        key, value = random.randbytes(8).hex(), random.randbytes(8).hex().encode()
        with self.exchange("SET", f"SET {key} {value.decode()}") as reply:
            assert reply.message == b"OK", "SET: not OK"
        with self.exchange("GET", f"GET {key}") as reply:
            assert reply.message == b"VALUE " + value, "GET: another value"
        with self.exchange("DEL", f"DEL {key}") as reply:
            assert reply.message == b"OK", "DEL: not OK"


class Chatter(WebSocketUser):
    """Says something in a room of its own, and hears it."""

    host = os.environ.get("CHAT", "ws://127.0.0.1:8001")
    wait_time = between(0.05, 0.15)
    network_timeout = 10.0

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        self.path = f"/live/{random.randbytes(8).hex()}?name=chatter"

    def on_connect(self) -> None:
        assert json.loads(self.websocket.receive(timeout=10.0))["kind"] == "joined"

    @task
    def say(self) -> None:
        with self.exchange("say", json.dumps({"text": "hello"})) as reply:
            assert json.loads(reply.message)["text"] == "hello", "another text"


class Caller(DatagramUser):
    """Calls an echo over UDP, if ECHO says where there is one."""

    abstract = "ECHO" not in os.environ
    host = os.environ.get("ECHO", "127.0.0.1:5001")
    wait_time = between(0.05, 0.15)

    def is_reply(self, asked: bytes, datagram: bytes) -> bool:
        return asked[:8] == datagram[:8]  # what a lossy network brought twice, or too late, has another number

    @task
    def call(self) -> None:
        with self.exchange("echo", random.randbytes(64)) as reply:
            assert len(reply.message) == 64, "another length"
