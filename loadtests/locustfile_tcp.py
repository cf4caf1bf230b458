"""Users of the ``lines`` example for Locust: a plain socket each, and every reply checked.

    python -m examples.lines --bind 127.0.0.1:5000
    locust -f loadtests/locustfile_tcp.py --host 127.0.0.1:5000 -s 10

``-s`` gives users the time to finish: without it Locust kills them within a request. ``python -m loadtests.load``
starts the server, passes what is needed and ends both.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from uuid import uuid4

import gevent
from locust import between, events, task
from locust.env import Environment
from locust.stats import CSV_STATS_INTERVAL_SEC

from greensock import Lines
from greensock.locust import ConnectionUser

__all__ = ["LinesUser", "WrongReply"]

#: Seconds that a reply may take.
PATIENCE = 5.0
#: Keys that one user uses.
KEYS = 5


class WrongReply(AssertionError):
    """The server has answered something else than what it was told before."""


class LinesUser(ConnectionUser):
    """Keeps its own keys in the store, knows what must be in it, and checks it."""

    host = "127.0.0.1:5000"
    wait_time = between(0.01, 0.1)
    framer = Lines()
    network_timeout = connection_timeout = PATIENCE

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.begin_anew()

    def begin_anew(self) -> None:
        """Take keys of which the store can know nothing."""
        self.mine = uuid4().hex[:12]
        self.table: dict[str, str] = {}

    def disconnect(self) -> None:
        super().disconnect()
        self.begin_anew()  # nobody knows what became of the last line

    def on_stop(self) -> None:
        """Take leave, unless it was stopped within an exchange: then it is no longer connected."""
        if self.is_connected:
            self.quit()

    def ask(self, name: str, lines: Sequence[str], expected: Sequence[str]) -> None:
        """Send lines in one go and check the reply to each."""
        with self.exchange(name) as exchange:
            self.connection.send("".join(f"{line}\n" for line in lines).encode(), timeout=PATIENCE)
            for line, right in zip(lines, expected, strict=True):
                self.check(line, exchange.receive(), right)

    def check(self, line: str, reply: bytes, right: str) -> None:
        """Raise if the reply is not right; few words, because Locust counts failures by what they say."""
        command = line.split()[0]
        found = reply.decode()
        if line == "KEYS":  # everybody's: look at ours
            found = " ".join(word for word in found.split(" ") if word == "KEYS" or word.startswith(self.mine))
        if found != right:
            first, wanted = found.split(" ")[0][:20], right.split(" ")[0]
            other = f"another {wanted}" if first == wanted else repr(first)
            raise WrongReply(f"{command} was answered {other}, not {wanted!r} as it should")

    def any_key(self) -> str:
        return f"{self.mine}-{random.randrange(KEYS)}"

    def put(self, key: str) -> str:
        """Note a new value for the key and return the line that stores it."""
        self.table[key] = f"{random.choice(('short', 'with some spaces in it', 'long' * 500))} {random.random()}"
        return f"SET {key} {self.table[key]}"

    def value(self, key: str) -> str:
        return f"VALUE {self.table[key]}" if key in self.table else "NONE"

    @task(10)
    def get(self) -> None:
        key = self.any_key()
        self.ask("GET", [f"GET {key}"], [self.value(key)])

    @task(5)
    def set(self) -> None:
        self.ask("SET", [self.put(self.any_key())], ["OK"])

    @task(2)
    def delete(self) -> None:
        key = self.any_key()
        right = "OK" if self.table.pop(key, None) is not None else "NONE"
        self.ask("DEL", [f"DEL {key}"], [right])

    @task(2)
    def many_at_once(self) -> None:
        """Send lines without waiting for the replies in between."""
        key = self.any_key()
        lines, expected = [], []
        for _ in range(5):
            lines += [self.put(key), f"GET {key}"]
            expected += ["OK", self.value(key)]
        self.ask("10 at once", lines, expected)

    @task(1)
    def keys(self) -> None:
        self.ask("KEYS", ["KEYS"], [" ".join(["KEYS", *self.table])])

    @task(1)
    def nonsense(self) -> None:
        self.ask("nonsense", ["HELLO there"], ["ERROR one of SET key value, GET key, DEL key, KEYS, QUIT expected"])

    @task(1)
    def come_back(self) -> None:
        self.stay_connected()
        self.quit()

    def quit(self) -> None:
        """Take leave, and see the server close."""
        with self.exchange("QUIT", b"QUIT") as reply:
            self.check("QUIT", reply.message, "BYE")
            if self.connection.recv(timeout=PATIENCE):
                raise WrongReply("QUIT was answered more than BYE")
        self.disconnect()


def complete_the_report(environment: Environment, **_: object) -> None:
    """Give Locust, which writes its CSV once a second, the time to write what came last."""
    if environment.parsed_options and environment.parsed_options.csv_prefix:
        gevent.sleep(CSV_STATS_INTERVAL_SEC + 0.2)


events.quitting.add_listener(complete_the_report)
