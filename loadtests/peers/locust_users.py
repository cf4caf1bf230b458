"""Locust, without its web interface, with users of one kind that ask for a small answer; what that took, as JSON.

Without a rate each asks again at once. With one, all together begin so many requests a second, and what is told of each
request's time is what Locust is told.
"""

from gevent import monkey

monkey.patch_all()

import argparse
import json
import time
from typing import Any

import gevent
from locust import FastHttpUser, HttpUser, constant, constant_throughput, task
from locust.env import Environment
from locust.event import Events

from greensock.locust import HTTPUser
from loadtests.peers.http_common import SMALL

#: Seconds before the time is taken: all users have connected then.
WARMUP = 0.5
#: By name.
KINDS: dict[str, Any] = {"greensock": HTTPUser, "fasthttp": FastHttpUser, "requests": HttpUser}


def user_of(kind: str, address: str, users: int, rate: float | None) -> Any:
    """Return the class of users."""

    base = KINDS[kind]

    class Asker(base):  # type: ignore[misc, valid-type]
        host = f"http://{address}"

        @task
        def ask(self) -> None:
            with self.client.get("/small", catch_response=True) as answer:
                if answer.status_code != 200 or answer.content != SMALL:
                    answer.failure("another answer")

    if rate is None:
        Asker.wait_time = constant(0)
    elif kind == "greensock":
        Asker.rate = rate / users
    else:
        Asker.wait_time = constant_throughput(rate / users)
    return Asker


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("address")
    parser.add_argument("--users", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--rate", type=float)
    options = parser.parse_args()
    kind = user_of(options.kind, options.address, options.users, options.rate)
    environment = Environment(user_classes=[kind], events=Events(), host=kind.host, stop_timeout=5)
    runner = environment.create_local_runner()
    runner.start(options.users, spawn_rate=options.users)
    gevent.sleep(WARMUP)
    times: list[float] = []
    if options.rate is not None:
        environment.events.request.add_listener(lambda response_time, **_: times.append(response_time))
    total = environment.stats.total
    asked, failed = total.num_requests, total.num_failures
    began, cpu = time.monotonic(), time.process_time()
    gevent.sleep(options.seconds)
    spent, seconds = time.process_time() - cpu, time.monotonic() - began
    asked, failed = total.num_requests - asked, total.num_failures - failed
    times.sort()
    latency = {f"p{share}_us": times[len(times) * share // 100] * 1e3 for share in (50, 99) if times}
    print(json.dumps({"asked": asked, "wrong": failed, "cpu": spent, "seconds": seconds, "latency": latency}))
    runner.quit()


if __name__ == "__main__":
    main()
