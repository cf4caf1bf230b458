"""The pipes of a hub: shared, held only while bytes are in them, and done without where there are none."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
import subprocess
import sys

import gevent
import pytest
from conftest import PATIENCE, descriptors, read_exactly, wait_until
from pairs import read_all_fast, read_exactly_fast, tcp_pair, wrap
from proxies import Origin, Recorded, gateway_to
from scripts import scripted

import greensock.core.pipes
from greensock import ConnectionLost, OperationTimeout
from greensock.core.pipes import MAX_SPARE, Pipes
from greensock.core.poller import get_poller
from greensock.core.send_queue import Passage
from greensock.descriptors import share_of_descriptors


def pipes_open():
    return sum(what.startswith("pipe:") for what in descriptors().values())


@contextlib.contextmanager
def splices(count):
    """Yield so many (socket to write to, socket to read from, greenlet that splices between them)."""
    made, ends = [], []
    try:
        for _ in range(count):
            (one, left), (two, right) = tcp_pair(), tcp_pair()
            source, target = wrap(one), wrap(two)
            ends.append((left, right, source, target))
            made.append((left, right, gevent.spawn(source.splice, target)))
        yield made
    finally:
        for _, _, moving in made:
            moving.kill()
        for left, right, source, target in ends:
            left.close()
            right.close()
            source.abort()
            target.abort()


def test_pipes_are_shared_and_bounded():
    pipes, before = Pipes(), pipes_open()
    pipes.enter()
    taken = [pipes.take() for _ in range(2 * MAX_SPARE)]
    assert pipes_open() == before + 4 * MAX_SPARE
    for ends in taken:
        pipes.give_back(ends)
    assert pipes_open() == before + 2 * MAX_SPARE
    again = pipes.take()
    assert again in taken
    pipes.give_back(again)
    pipes.leave()
    assert pipes_open() == before, "none is kept when nobody splices"


def test_pipes_are_a_share_of_the_descriptors(monkeypatch):
    monkeypatch.setattr(greensock.core.pipes, "share_of_descriptors", lambda: 3)
    pipes = Pipes()
    pipes.enter()
    for round_ in range(3):
        taken = [pipes.take() for _ in range(4)]
        assert taken[3] is None
        assert None not in taken[:3]
        pipes.discard(taken[0])
        pipes.give_back(taken[1])
        taken = [taken[2], pipes.take(), pipes.take(), pipes.take()]
        assert [ends is None for ends in taken] == [False, False, False, True], round_
        for ends in taken[:3]:
            pipes.give_back(ends)
        if round_:
            pipes.close()
    pipes.leave()


def test_a_share_goes_by_the_limit_as_it_is(monkeypatch):
    for limit, share in ((31, 0), (300, 9), (1024, 32), (resource.RLIM_INFINITY, 1 << 25)):
        monkeypatch.setattr(resource, "getrlimit", lambda kind, limit=limit: (limit, 1 << 20))
        assert share_of_descriptors() == share


def test_what_is_given_back_when_nobody_splices_is_closed():
    pipes, before = Pipes(), pipes_open()
    pipes.enter()
    ends = pipes.take()
    pipes.leave()
    pipes.give_back(ends)
    assert pipes_open() == before


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_none_to_be_had_is_no_error(monkeypatch, number):
    monkeypatch.setattr(os, "pipe2", lambda flags: (_ for _ in ()).throw(OSError(number, "none")))
    assert Pipes().take() is None


def test_any_other_error_is_one(monkeypatch):
    monkeypatch.setattr(os, "pipe2", lambda flags: (_ for _ in ()).throw(OSError(errno.EINVAL, "what")))
    with pytest.raises(OSError, match="what"):
        Pipes().take()


def test_a_silent_splice_holds_no_descriptor():
    with splices(20) as made:
        gevent.sleep(0)
        before = pipes_open()
        for left, right, _ in made:
            left.sendall(b"hello")
            assert read_exactly(right, 5) == b"hello"
        assert pipes_open() <= before + 2, "they take turns"
    assert get_poller().pipes._spare == []


def test_bytes_that_are_stuck_hold_a_pipe_each_and_no_others():
    """Each target's peer reads nothing: what is in a pipe is never another's."""
    with splices(3) as made:
        contents = [bytes([number]) * 8_000_000 for number in range(3)]
        jobs = [gevent.spawn(left.sendall, content) for (left, _, _), content in zip(made, contents, strict=True)]
        wait_until(lambda: pipes_open() >= 6)
        readers = [gevent.spawn(read_exactly_fast, right, 8_000_000) for _, right, _ in made]
        gevent.joinall(jobs, timeout=PATIENCE, raise_error=True)
        for left, _, _ in made:
            left.shutdown(socket.SHUT_WR)
        assert [moving.get(timeout=PATIENCE) for _, _, moving in made] == [8_000_000] * 3
        assert [reader.get(timeout=PATIENCE) for reader in readers] == contents


@pytest.mark.parametrize("ending", ["kill", "timeout", "abort"])
def test_a_splice_that_is_broken_off_gives_no_bytes_to_the_next(ending):
    before = pipes_open()
    (one, left), (two, right) = tcp_pair(), tcp_pair()
    source, target = wrap(one), wrap(two)
    with splices(1) as [(other_left, other_right, _)]:
        timeout = 0.05 if ending == "timeout" else None
        moving = gevent.spawn(source.splice, target, timeout=timeout)
        feeding = gevent.spawn(left.sendall, b"x" * 8_000_000)
        wait_until(lambda: target.statistics().bytes_queued or moving.ready())
        if ending == "kill":
            moving.kill()
        elif ending == "abort":
            target.abort()
            with pytest.raises(Exception, match="closed"):
                moving.get(timeout=PATIENCE)
        else:
            with pytest.raises(OperationTimeout):
                moving.get(timeout=PATIENCE)
        other_left.sendall(b"mine")
        assert read_exactly(other_right, 4) == b"mine"
        feeding.kill()
        target.abort()
    source.abort()
    left.close()
    right.close()
    assert pipes_open() == before


def without_pipes(monkeypatch):
    monkeypatch.setattr(Pipes, "take", lambda self: None)


@pytest.mark.parametrize("kind", ["whole", "count", "stalled", "lost"])
def test_without_a_pipe_bytes_are_copied(monkeypatch, kind):
    without_pipes(monkeypatch)
    content = os.urandom(1_000_000) * (16 if kind == "stalled" else 3)  # more than both sockets hold
    (one, left), (two, right) = tcp_pair(), tcp_pair()
    source, target = wrap(one), wrap(two)
    feeding = gevent.spawn(left.sendall, content)
    count = 1_000_001 if kind == "count" else None
    moving = gevent.spawn(source.splice, target, count)
    if kind == "stalled":
        wait_until(lambda: target.statistics().bytes_queued)
        assert target.statistics().bytes_queued <= 65536
    if kind == "lost":
        right.close()
        with pytest.raises(ConnectionLost):
            moving.get(timeout=PATIENCE)
        feeding.kill()
    else:
        reading = gevent.spawn(read_all_fast, right)
        if count is None:
            feeding.get(timeout=PATIENCE)
            left.shutdown(socket.SHUT_WR)
        assert moving.get(timeout=PATIENCE) == (count or len(content))
        target.close()
        assert reading.get(timeout=PATIENCE) == content[:count]
        feeding.kill()
    for conn in (source, target):
        conn.abort()
    for sock in (left, right):
        sock.close()


def test_urgent_data_is_got_past():
    (one, left), (two, right) = tcp_pair(), tcp_pair()
    source, target = wrap(one), wrap(two)
    moving = gevent.spawn(source.splice, target)
    left.sendall(b"abc")
    left.send(b"X", socket.MSG_OOB)
    left.sendall(b"def")
    assert read_exactly(right, 6) == b"abcdef"
    moving.kill()
    for conn in (source, target):
        conn.abort()
    for sock in (left, right):
        sock.close()


SHORT = """
from gevent import monkey; monkey.patch_all()
import gevent, logging, os, resource, socket, sys
from greensock.proxy import Buffering, Gateway, ReverseProxy, Route, ServerOptions, UpstreamOptions
logging.basicConfig(stream=sys.stdout, level=logging.WARNING)
origin = ("127.0.0.1", int(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
app = UpstreamOptions("app", (ServerOptions("http://{}:{}".format(*origin)),))
proxy = ReverseProxy(("127.0.0.1", 0), Gateway([app], [Route("app")], buffer=Buffering(0, 0)))
proxy.start()
print(proxy.server_port, flush=True)
proxy.serve_forever()
"""

SIZE = 6_000_000


def test_downloads_and_tunnels_where_descriptors_are_short(serve):
    """75 downloads take 150 of 256 descriptors: with two more for a pipe each, some would break off."""
    origin = serve(Origin)
    command = [sys.executable, "-c", SHORT, str(origin.server_port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        address = "127.0.0.1", int(process.stdout.readline())
        socks = []
        try:
            for _ in range(75):
                sock = socket.create_connection(address)
                sock.settimeout(30)
                sock.sendall(b"GET /large/%d HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % SIZE)
                socks.append(sock)
            for sock in socks:
                assert sock.recv(1, socket.MSG_PEEK)
            assert origin.statistics().accepted == 75, "all of them are stuck: nobody reads"
            jobs = [gevent.spawn(read_all_fast, sock) for sock in socks]
            sizes = [len(job.get(timeout=60).partition(b"\r\n\r\n")[2]) for job in jobs]
            assert sizes == [SIZE] * 75
        finally:
            for sock in socks:
                sock.close()
            process.terminate()
            output = process.communicate(timeout=PATIENCE)[0]
        assert output == "", output


def test_an_idle_tunnel_holds_two_descriptors(serve):
    def script(server, sock, number):
        server.head(sock)
        sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n")
        while data := sock.recv(65536):
            sock.sendall(data)

    before = pipes_open()
    with scripted(script) as server:
        gateway = gateway_to(server.url)
        proxy = serve(Recorded, gateway=gateway)
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(socket.create_connection(proxy.address)) for _ in range(10)]
            for sock in socks:
                sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n")
                assert b"\r\n\r\n" in sock.recv(4096)
                sock.sendall(b"hello")
                assert read_exactly(sock, 5) == b"hello"
            assert pipes_open() <= before + 4, "20 ways take turns with one or two"
        wait_until(lambda: len(proxy.records) == 10)
        gateway.upstreams["site"].close()


def test_a_fork_closes_the_parents_spare_pipes():
    """In the child they are copies: it must not hold them open, nor use them."""
    pipes = get_poller().pipes
    pipes.enter()
    ends = pipes.take()
    pipes.give_back(ends)
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(writer, b"%d" % sum(os.path.exists(f"/proc/self/fd/{end}") for end in ends))
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reader, 10) == b"0"
    os.close(reader)
    os.close(writer)
    pipes.leave()


def test_a_passage_keeps_count():
    """What it takes and what it lets go, with and without a pipe, in one size after the other."""
    pipes = Pipes()
    for size in (1, 4096, 65536):
        (one, left), (two, right) = tcp_pair(), tcp_pair()
        with one, left, two, right:
            passage = Passage(pipes, lambda: None)
            left.sendall(b"x" * size)
            wait_until(lambda: len(one.recv(size, socket.MSG_PEEK)) == size, 5)  # noqa: B023
            taken = passage.pull(one.fileno(), size, False)
            assert passage.left == taken
            assert not passage.stalled
            assert passage.push(two.fileno()) == taken
            assert (passage.left, passage.sent, passage.stalled, passage.finished) == (0, taken, True, False)
            passage.finish()
            assert passage.finished
            passage.discard()


def test_a_target_that_is_shown_while_a_pipe_holds_bytes_gets_them_all():
    content = os.urandom(1_000_000) * 16  # more than both sockets hold
    (one, left), (two, right) = tcp_pair(), tcp_pair()
    source, target = wrap(one), wrap(two)
    before = pipes_open()
    feeding = gevent.spawn(left.sendall, content)
    moving = gevent.spawn(source.splice, target, len(content))
    wait_until(lambda: target.statistics().bytes_queued)
    assert pipes_open() > before
    target.fileno()
    assert read_exactly_fast(right, len(content)) == content
    assert moving.get(timeout=PATIENCE) == len(content)
    assert pipes_open() == before
    feeding.get(timeout=PATIENCE)
    for conn in (source, target):
        conn.abort()
    for sock in (left, right):
        sock.close()


def test_a_pipe_of_which_nobody_knows_what_is_in_it_is_given_to_nobody(monkeypatch):
    """A handler of a signal may raise behind the call that filled it."""
    splice = os.splice

    class Interrupt(BaseException):
        pass

    def interrupted(*arguments, **options):
        splice(*arguments, **options)
        raise Interrupt

    with splices(2) as ((first, _, moving), (second, right, _)):
        gevent.sleep(0)
        monkeypatch.setattr("greensock.core.send_queue.os.splice", interrupted)
        first.sendall(b"secret")
        moving.join(PATIENCE)
        monkeypatch.setattr("greensock.core.send_queue.os.splice", splice)
        assert isinstance(moving.exception, Interrupt)
        second.sendall(b"plain")
        assert read_exactly(right, 5) == b"plain"
