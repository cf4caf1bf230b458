"""Tens of thousands of requests through the proxy, before servers that do at random whatever servers do.

What each client sends, and what each server does to it, follows from SEED and the request's number (see
``storm_site``), so that a number in a failure can be looked up; in what order things happen does not. Clients and the
proxy are in this process, which is checked for leaks; the servers are in two others, and one of these is killed and
started again meanwhile. Checked for every request:

- It is answered once, exactly, by its own answer or an error of the proxy's; or the client sees that it was cut short.
- What a server did for it was done once, unless the method is idempotent.
- It was tried again whenever that was allowed, and only then.

``STORM_SEED`` and ``STORM_REQUESTS`` in the environment take the place of the defaults; 52000 of them take minutes.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import socket
import subprocess
import sys
import zlib
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import gevent
import pytest
from conftest import wait_until
from gevent.pool import Group
from pairs import reset
from proxies import gateway_to
from storm_site import BLOB, BYE, FAULTS, MIRROR, MORTAL, SIGHT, answer_to

from greensock.proxy import HealthOptions, ProxyTimeouts, ReverseProxy, ServerOptions

SEED = int(os.environ.get("STORM_SEED", "7"))
REQUESTS = int(os.environ.get("STORM_REQUESTS", "8000"))
CLIENTS = 32
#: Seconds in which each single wait of a client must end.
STUCK = 30
#: Seconds between the reads of a slow client.
PACE = 0.002
MAX_REPLAY = 20_000
#: Requests of which each fault is a few, the rarest (2 of 1000) a dozen.
ENOUGH = 6_000
IDEMPOTENT = {"GET", "HEAD", "PUT", "DELETE"}
#: Reasons of failures after which another server may be asked: whatever the request is, or if it is repeatable.
ALWAYS = {"connect-failed", "connect-timeout", "queue-full"}
REPEATABLE = {"no-response", "head-timeout", "send-timeout"}
#: Where the answer's head was out before.
CUT = {"body-incomplete", "body-timeout"}
STATUS_OF = {
    "connect-failed": 502,
    "connect-timeout": 504,
    "queue-full": 503,
    "queue-timeout": 503,
    "no-response": 502,
    "send-timeout": 504,
    "head-timeout": 504,
    "bad-response": 502,
}


class Cut(Exception):
    """The connection ended before the answer did."""


class Plan(NamedTuple):
    """What a client sends."""

    number: int
    method: str
    start: int
    size: int
    chunked: bool
    upgrade: bool
    closes: bool

    @property
    def body(self):
        return BLOB[self.start : self.start + self.size]

    @property
    def is_repeatable(self):
        return self.method in IDEMPOTENT and not self.chunked and self.size <= MAX_REPLAY and not self.upgrade

    @property
    def wire(self):
        head = b"%b /r/%d HTTP/1.1\r\nHost: a\r\n" % (self.method.encode(), self.number)
        if self.upgrade:
            head += b"Connection: Upgrade\r\nUpgrade: mirror\r\n"
        elif self.closes:
            head += b"Connection: close\r\n"
        if self.method not in ("POST", "PUT"):
            return head + b"\r\n"
        if not self.chunked:
            return head + b"Content-Length: %d\r\n\r\n" % self.size + self.body
        middle = self.size // 2
        pieces = [each for each in (self.body[:middle], self.body[middle:]) if each]
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in pieces)
        return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


def plan_of(number, kind):
    """Return what a client sends in a session of that kind."""
    draw = random.Random(f"{SEED} request {number}").random
    closes = kind == "one"
    if kind == "tunnel":
        return Plan(number, "GET", int(draw() * 1_000_000), int(draw() * 20_000), False, True, False)
    method = draw()
    method = next(
        name
        for name, most in (("GET", 0.45), ("HEAD", 0.55), ("POST", 0.77), ("PUT", 0.93), ("DELETE", 1))
        if method < most
    )
    if method not in ("POST", "PUT"):
        return Plan(number, method, 0, 0, False, False, closes)
    size = draw()
    size = int(200 * draw()) if size < 0.6 or kind == "pipeline" else int((25_000 if size < 0.93 else 200_000) * draw())
    return Plan(number, method, int(draw() * 1_000_000), size, draw() < 0.25, False, closes)


class Wire:
    """A client's connection, read by messages."""

    def __init__(self, address, slow=False):
        self.sock = socket.create_connection(address)
        self.sock.settimeout(STUCK)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = bytearray()
        self._slow = slow
        self._is_reset = False

    def send(self, data):
        """Send as much as goes: the answer may be there although nobody listens any more."""
        try:
            self.sock.sendall(data)
        except ConnectionError:
            self._is_reset = True

    def more(self):
        try:
            if self._slow:
                gevent.sleep(PACE)
                data = self.sock.recv(3000)
            else:
                data = self.sock.recv(65536)
        except ConnectionResetError:
            raise Cut("reset") from None
        if not data:
            raise Cut("reset" if self._is_reset else "ended")
        self.buffer += data

    def until(self, mark):
        start = 0
        while (end := self.buffer.find(mark, start)) < 0:
            start = max(0, len(self.buffer) - len(mark))
            self.more()
        return self.take(end + len(mark))

    def take(self, count):
        while len(self.buffer) < count:
            self.more()
        taken = bytes(memoryview(self.buffer)[:count])
        del self.buffer[:count]
        return taken

    def body(self, head):
        length = re.search(rb"\r\nContent-Length: (\d+)\r\n", head)
        if length is not None:
            assert b"Transfer-Encoding" not in head
            return self.take(int(length[1]))
        assert b"\r\nTransfer-Encoding: chunked\r\n" in head, head
        body = b""
        while size := int(self.until(b"\r\n"), 16):
            body += self.take(size)
            assert self.take(2) == b"\r\n"
        assert self.take(2) == b"\r\n", "no trailers were sent"
        return body

    def answer(self, method):
        """Read the final answer to a request: status, head, body."""
        while True:
            head = self.until(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 "), head
            status = int(head[9:12])
            if status >= 200:
                return status, head, self.body(head) if method != "HEAD" else b""
            if status == 101:
                return status, head, b""

    def expect_end(self):
        """Check that nothing more comes."""
        try:
            while True:
                assert not self.buffer, bytes(self.buffer)
                self.more()
        except Cut:
            pass


class Storming(ReverseProxy):
    """Keeps of each record what is looked at."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        #: By the number of the request.
        self.found = {}

    def request_recorded(self, record):
        whole = re.fullmatch(rb"/r/(\d+)", record.target)
        if whole is None:
            return  # a head in which its client left
        number = int(whole[1])
        assert number not in self.found, f"{record.target} has two records"
        self.found[number] = record


class Storm:
    """The clients, and what became of their requests."""

    def __init__(self, address, count):
        self.address = address
        self.count = count
        self.next = 0
        #: The request, and what its client saw: a status, ``cut``, ``unasked`` (cut before its turn came) or ``left``.
        self.seen = {}
        self.wrong = []
        #: Of each that was cut: how, and the numbers of those behind it in the pipeline.
        self.cut = {}

    def run(self):
        group = Group()
        for _ in range(CLIENTS):
            group.spawn(self._client)
        return group

    def _client(self):
        while self.next < self.count:
            first = self.next
            draw = random.Random(f"{SEED} session {first}")
            kinds = {"kept": 52, "pipeline": 20, "one": 15, "tunnel": 5, "leaves": 5, "slow": 3}
            kind = draw.choices(list(kinds), kinds.values())[0]
            count = {"kept": draw.randint(1, 20), "pipeline": draw.randint(2, 8), "slow": 3}.get(kind, 1)
            self.next += count
            plans = [plan_of(number, kind) for number in range(first, first + count)]
            while plans and not self.wrong:
                try:
                    plans = self._session(kind, plans, draw)
                except Exception as error:
                    self.wrong.append((plans[0], kind, error))
                    raise

    def _session(self, kind, plans, draw):
        """Make requests on one connection; return those that could not be made any more."""
        wire = Wire(self.address, kind == "slow")
        with wire.sock:
            if kind == "leaves":
                return self._leave(wire, plans[0], draw)
            if kind == "pipeline":
                wire.send(b"".join(plan.wire for plan in plans))
            for place, plan in enumerate(plans):
                try:
                    if kind != "pipeline":
                        wire.send(plan.wire)
                    status, head, body = wire.answer(plan.method)
                except Cut as cut:
                    self._note(plan, "cut")
                    behind = plans[place + 1 :]
                    self.cut[plan.number] = str(cut), [each.number for each in behind] if kind == "pipeline" else []
                    return self._unasked(kind, behind)
                self._check(plan, status, head, body)
                if status == 101:
                    self._tunnel(wire, plan)
                    return []
                self._note(plan, status)
                if plan.closes or b"\r\nConnection: close\r\n" in head:
                    wire.expect_end()
                    return self._unasked(kind, plans[place + 1 :])
            assert not wire.buffer, "an answer that nobody asked for"
        return []

    def _unasked(self, kind, plans):
        if kind != "pipeline":
            return plans
        for plan in plans:
            self._note(plan, "unasked")
        return []

    def _note(self, plan, what):
        assert plan.number not in self.seen
        self.seen[plan.number] = plan, what

    def _check(self, plan, status, head, body):
        number = re.search(rb"\r\nX-Id: (\d+)\r\n", head)
        if number is None:
            assert status in (502, 503, 504), head
            return
        assert int(number[1]) == plan.number, (head, plan)
        if status == 200:
            answer = answer_to(SEED, plan.number)
            assert int(re.search(rb"\r\nX-Sum: (\d+)\r\n", head)[1]) == zlib.crc32(plan.body)
            assert plan.method == "HEAD" or body == answer.body, f"another's body: {len(body)} bytes, not {answer.size}"
        elif status == 403:
            assert body == b"early"
        else:
            assert status == 101
            assert plan.upgrade

    def _tunnel(self, wire, plan):
        """Check that everything comes back, and the end with it; or the beginning of that."""
        wanted = plan.body.translate(MIRROR) + BYE
        wire.send(plan.body)
        with contextlib.suppress(OSError):
            wire.sock.shutdown(socket.SHUT_WR)
        try:
            while True:
                wire.more()
        except Cut as cut:
            how = str(cut)
        assert wanted.startswith(wire.buffer)
        if len(wire.buffer) < len(wanted):
            self.cut[plan.number] = how, []
        else:
            assert how == "ended"
        self._note(plan, "cut" if plan.number in self.cut else 101)

    def _leave(self, wire, plan, draw):
        """Leave in the head, in the body, behind the request, or in the answer."""
        data = plan.wire
        end = data.index(b"\r\n\r\n") + 4
        phase = draw.choice(["head", "body", "behind", "answer"])
        if phase == "head":
            data = data[: draw.randint(1, end - 1)]
        elif phase == "body":
            data = data[: draw.randint(end, len(data))]
        with contextlib.suppress(Cut):
            wire.send(data)
            if phase == "answer":
                wire.more()
        self._note(plan, "left")
        if draw.random() < 0.5:
            reset(wire.sock)
        return []


class Site:
    """The servers: one process with three, one with one."""

    def __init__(self, log):
        # An address of our own: no outgoing connection takes a port there while nobody listens.
        pid = os.getpid()
        host = f"127.{64 + pid // 62500 % 64}.{1 + pid // 250 % 250}.{1 + pid % 250}"
        self.log = log
        self.ends = [f"{host}:{8000 + index}" for index in range(4)]
        self._often = self._start(0, 1, 2)
        self._mortal = self._start(MORTAL)
        self.kills = 0

    def _start(self, *indices):
        program = Path(__file__).with_name("storm_site.py")
        servers = [f"{self.ends[index]}:{index}" for index in indices]
        process = subprocess.Popen(
            [sys.executable, str(program), str(SEED), str(self.log), *servers], stdout=subprocess.PIPE
        )
        assert process.stdout.readline() == b"ready\n"
        return process

    def kill(self):
        """Kill one process, and start it again."""
        _end(self._mortal)
        self.kills += 1
        self._mortal = self._start(MORTAL)

    def close(self):
        _end(self._often)
        _end(self._mortal)

    def sights(self):
        """Return what was done to each request, in turn."""
        found = defaultdict(list)
        for number, _, fault in SIGHT.iter_unpack(self.log.read_bytes()):
            found[number].append(FAULTS[fault])
        return found


def _end(process):
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture
def site(tmp_path):
    site = Site(tmp_path / "sights")
    yield site
    site.close()


#: Part of all requests, and options of the servers. The first may retry as much as it wants.
RUNS = {
    "all retries": (0.8, {"retry_budget": 1.0, "min_retry_rate": 1e6, "balance": "round_robin"}),
    "few retries": (0.2, {"retry_budget": 0.02, "min_retry_rate": 0.0, "balance": "least_connections"}),
}


@pytest.mark.parametrize("run", RUNS)
def test_a_storm(serve, site, run):
    share, options = RUNS[run]
    count = int(REQUESTS * share)
    print(f"STORM_SEED={SEED} STORM_REQUESTS={REQUESTS}")
    gateway = gateway_to(
        *(ServerOptions(f"http://{end}", max_connections=6, max_waiting=4) for end in site.ends),
        health=HealthOptions(max_fails=4, fail_ratio=0.2, fail_window=0.5, ejection_time=0.02, max_ejection=0.1),
        timeouts=ProxyTimeouts(upstream_head=1.0, upstream_idle=1.0, connect=1.0, linger=0.5),
        max_replay=MAX_REPLAY,
        retries=3,
        **options,
    )
    proxy = serve(Storming, gateway=gateway)
    storm = Storm(proxy.address, count)
    clients = storm.run()
    try:
        for part in (0.25, 0.6):
            wait_until(lambda part=part: storm.next >= part * count or storm.wrong, 100)
            site.kill()
        clients.join(100)
    finally:
        clients.kill()
    assert not storm.wrong
    assert len(storm.seen) == storm.next >= count, "each was made"
    servers = gateway.upstreams["site"].all
    wait_until(lambda: not proxy.statistics().active)
    assert [(each.used, each.pool.state.statistics().used, each.status("").waiting) for each in servers] == [
        (0, 0, 0)
    ] * 4
    _check_answers(storm, proxy)
    sights = site.sights()
    _check_tries(storm, proxy, sights)
    _check_retries(storm, proxy, gateway.upstreams["site"].budget, run)
    _check_that_it_stormed(proxy, Counter(fault for each in sights.values() for fault in each), servers, count)
    gateway.upstreams["site"].close()
    assert all(each.pool.state.statistics() == each.pool.state.statistics(each.origin) for each in servers)
    assert not any(each.pool.state.origins for each in servers)


def _check_answers(storm, proxy):
    """What the client saw is what the proxy says."""
    undelivered = set()
    for number, (plan, seen) in storm.seen.items():
        record = proxy.found.get(number)
        said = (record.status, record.reason, record.upstream, record.upstream_status) if record else None
        found = f"{plan} {seen} {said} {storm.cut.get(number)}"
        if seen == "cut":
            how, behind = storm.cut[number]
            if not _may_be_cut(storm, number, record, how):
                # What was not yet delivered of it went with the reset that one behind it in the pipeline got.
                done = [each for each in behind if each in proxy.found]
                assert how == "reset", found
                assert any(proxy.found[each].reason in CUT for each in done), found
                undelivered.update(done)
        elif seen == "unasked":
            assert record is None or number in undelivered, found
        elif seen != "left":
            assert record is not None, found
            assert record.status == seen, found
            assert STATUS_OF.get(record.reason) == (seen if seen > 500 else None), found
    assert proxy.found.keys() <= storm.seen.keys(), "requests that nobody made"


def _may_be_cut(storm, number, record, how):
    """Whether there is a reason of its own for a request's client to see no answer, or not all of it."""
    if record is None:  # it was too late: an error was answered before while a long body still came, of unknown length
        plan, seen = storm.seen[number - 1]
        return plan.chunked and plan.size > 65536 and seen in {403, *STATUS_OF.values()}
    if record.status == 101:  # a process that is killed ends its tunnels without a reset
        return how == "reset" or record.upstream.endswith(f":{8000 + MORTAL}")
    return record.reason in CUT


def _check_tries(storm, proxy, sights):
    """Nothing was done that should not have been, or twice."""
    for number, (plan, seen) in storm.seen.items():
        faults, record = sights.get(number, []), proxy.found.get(number)
        count = len(faults)
        if seen in (200, 403, 101):
            assert count >= 1, plan
        if record is None:
            assert not count, (plan, seen)
        elif not plan.is_repeatable:
            assert count <= 1, (plan, seen, count)
        else:
            assert count <= 2 * record.tries, (plan, seen, count)  # one free try each
        if record is not None and record.reason == "bad-response":
            assert faults[-1:] == ["says something else"], (plan, faults)
    assert sights.keys() <= storm.seen.keys(), "requests that nobody made"


def _check_retries(storm, proxy, budget, run):
    """Whatever failed, and could be tried again, was."""
    refused = retried = 0
    for number, record in proxy.found.items():
        plan, seen = storm.seen[number]
        retried += max(0, record.tries - 1)
        assert record.tries <= 4, (plan, seen)
        if record.reason in ALWAYS or (record.reason in REPEATABLE and plan.is_repeatable):
            refused += record.tries < 4
    assert retried == proxy.retries == budget.retries
    assert refused == budget.refused
    if run == "all retries":
        assert not refused
    else:
        assert refused
        assert budget.retries <= 0.02 * len(storm.seen)


def _check_that_it_stormed(proxy, faults, servers, count):
    """It was a storm at all."""
    if count >= ENOUGH:  # in fewer, chance may leave out the rarest
        for fault in FAULTS:
            assert faults[fault] >= count // 2000, (fault, faults)
        for reason in ("no-response", "bad-response", "body-incomplete", "body-timeout"):
            assert proxy.failures[reason], (reason, proxy.failures)
    assert proxy.statistics().statuses[200] > count / 2
    assert proxy.tunnels > count // 500
    assert sum(each.health.statistics().ejections for each in servers)
