"""The access log: what a line looks like, and that nothing stops the proxy."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import subprocess
import sys
import time
from datetime import datetime, timezone

import pytest
from conftest import PATIENCE, PAUSE, wait_until
from gevent import monkey
from hypothesis import given
from hypothesis import strategies as st

from greensock.proxy import AccessLog, Record, combined_line, json_line
from greensock.proxy.log import access_log
from greensock.proxy.log.access_log import BATCH, MAX_FIELD, MAX_KEPT


def record(number: int = 0, **values) -> Record:
    made = Record(1700000000.25, "192.0.2.1", "10.0.0.1", "GET", b"/%d" % number, "1.1")
    for name, value in values.items():
        setattr(made, name, value)
    return made


def numbers(data: bytes) -> list[int]:
    """Return the numbers of the records, line by line; a line that is not whole fails."""
    assert data.endswith(b"\n") or not data
    return [
        int(re.fullmatch(rb'.* "GET /(\d+) HTTP/1.1" .* id=-', line).group(1)) for line in data.splitlines() if line
    ]


@pytest.fixture
def logs():
    """Make access logs that are closed after the test."""
    made = []

    def make(*args, **options):
        made.append(AccessLog(*args, **options))
        return made[-1]

    yield make
    for each in made:
        each.close(0)
        wait_until(lambda each=each: each.close(0))


# -- lines

WHOLE = {
    "user": "joe",
    "host": b"example.org",
    "referer": b"http://example.org/",
    "agent": b"curl/8",
    "status": 200,
    "sent": 1234,
    "received": 5,
    "duration": 0.25,
    "route": "api",
    "upstream": "127.0.0.1:9000, 127.0.0.1:9001",
    "upstream_status": "-, 200",
    "connect_time": 0.0,
    "head_time": 0.125,
    "upstream_time": 0.1875,
    "tries": 2,
    "reused": True,
    "request_id": "f00",
}


def in_local_time(line: bytes) -> bytes:
    return re.sub(rb"\[.*?\]", b"[TIME]", line)


def test_a_combined_line():
    assert in_local_time(combined_line(record(**WHOLE))) == (
        b'192.0.2.1 - joe [TIME] "GET /0 HTTP/1.1" 200 1234 "http://example.org/" "curl/8" rt=0.250000'
        b' upstream="127.0.0.1:9000, 127.0.0.1:9001" us="-, 200" uct=0.000000 uht=0.125000 urt=0.187500'
        b' reason=- route="api" id=f00\n'
    )
    refused = Record(0.0, "", "", "", b"", "")
    refused.status, refused.reason = 400, "host-missing"
    assert in_local_time(combined_line(refused)) == (
        b'- - - [TIME] "-" 400 0 "-" "-" rt=0.000000 upstream="-" us="-" uct=- uht=- urt=-'
        b' reason=host-missing route="-" id=-\n'
    )


def test_its_time_is_the_local_one():
    program = """if True:
        import time
        from greensock.proxy import Record, combined_line
        for started in (0, 1700000000.9, 1720000000):
            print(combined_line(Record(started, "", "", "GET", b"/", "1.1")).decode().split("[")[1].split("]")[0])
    """
    for zone, lines in {
        "UTC0": ["01/Jan/1970:00:00:00 +0000", "14/Nov/2023:22:13:20 +0000", "03/Jul/2024:09:46:40 +0000"],
        "NST3:30NDT": ["31/Dec/1969:20:30:00 -0330", "14/Nov/2023:18:43:20 -0330", "03/Jul/2024:07:16:40 -0230"],
        "IST-5:30": ["01/Jan/1970:05:30:00 +0530", "15/Nov/2023:03:43:20 +0530", "03/Jul/2024:15:16:40 +0530"],
    }.items():
        environment = {**os.environ, "TZ": zone}
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        assert done.stdout.splitlines() == lines, done.stderr


def test_what_a_client_wrote_is_escaped():
    line = combined_line(record(agent=b'a"b\\c\x00\r\n\x7f\xff', target=b"/\x1b[31m", method="G\u00c9T", user='a b"'))
    assert rb'"a\x22b\x5Cc\x00\x0D\x0A\x7F\xFF"' in line
    assert rb'"G\xC3\x89T /\x1B[31m HTTP/1.1"' in line
    assert rb"- a_b\x22 [" in line
    assert rb"\xFF" not in combined_line(record(agent=b" !#[]~"))


def test_a_line_of_json():
    found = json.loads(json_line(record(**WHOLE)))
    assert found == {
        **{name: value.decode() if isinstance(value, bytes) else value for name, value in WHOLE.items()},
        "time": "2023-11-14T22:13:20.250Z",
        "client": "192.0.2.1",
        "peer": "10.0.0.1",
        "method": "GET",
        "target": "/0",
        "version": "1.1",
        "reason": "",
    }
    assert datetime.fromtimestamp(1700000000, timezone.utc).isoformat().startswith(found["time"][:19])
    assert set(found) == {*Record.__slots__, "time"} - {"started"}
    odd = json.loads(json_line(record(agent=b'\xc3\xa9\xff"\x00\n\xe2\x80\xa8', referer=None, head_time=0.1 + 0.2)))
    assert odd["agent"] == 'é\\xff"\0\n\u2028'
    assert odd["referer"] is None
    assert odd["head_time"] == 0.3


@given(st.binary(), st.binary(), st.text(), st.text())
def test_whatever_came_it_is_one_line_of_ascii(target, agent, client, reason):
    for method in ("GET", "", client):
        made = record(agent=agent, client=client, reason=reason, upstream=client, route=reason, method=method)
        made.target = target
        line = combined_line(made)
        assert line.count(b"\n") == 1
        assert line.isascii()
        assert re.fullmatch(rb'\S+ - \S+ \[[^]]+\] "[^"]*" \d+ \d+ "[^"]*" "[^"]*" rt=.* reason=\S+ .*\n', line)
        line = json_line(made)
        assert line.count(b"\n") == 1
        assert line.isascii()
        assert json.loads(line)["client"] == client


# -- writing


def test_lines_are_written_in_order(logs, tmp_path):
    path = tmp_path / "access.log"
    log = logs(str(path))
    assert not path.exists()
    for number in range(3 * BATCH + 1):
        log.write(record(number))
    assert wait_until(lambda: log.written == 3 * BATCH + 1)
    assert numbers(path.read_bytes()) == list(range(3 * BATCH + 1))
    log.write(record(7))
    assert log.close()
    assert numbers(path.read_bytes())[-1] == 7
    log.write(record(8))
    log.reopen()
    assert log.close()
    assert (log.written, log.dropped, log.pending) == (3 * BATCH + 2, 1, 0)


def test_lines_are_put_behind_those_that_are_there(logs, tmp_path):
    path = tmp_path / "access.log"
    path.write_bytes(combined_line(record(1)))
    log = logs(str(path), "combined", 5)
    log.write(record(2))
    assert log.close()
    assert numbers(path.read_bytes()) == [1, 2]
    assert path.stat().st_mode & 0o777 == 0o644


def test_json_and_a_format_of_ones_own(logs, tmp_path):
    path = tmp_path / "access.log"
    for form in ("json", lambda made: made.target + b"\n"):
        log = logs(str(path), form)
        log.write(record(3))
        assert log.close()
    first, second = path.read_bytes().splitlines()
    assert json.loads(first)["target"] == "/3"
    assert second == b"/3"


def test_a_descriptor_is_left_open(logs):
    reader, writer = os.pipe()
    log = logs(writer)
    log.write(record(1))
    assert log.close()
    os.write(writer, b"")
    assert numbers(os.read(reader, 65536)) == [1]
    os.close(reader)
    os.close(writer)


def test_standard_output():
    program = """if True:
        from greensock.proxy import AccessLog, Record
        log = AccessLog()
        log.write(Record(0.0, "c", "p", "GET", b"/5", "1.1"))
        log.reopen()
        log.write(Record(0.0, "c", "p", "GET", b"/6", "1.1"))
        print(log.close(), log.dropped, flush=True)
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True)
    *lines, last = done.stdout.splitlines(keepends=True)
    assert (numbers(b"".join(lines)), last) == ([5, 6], b"True 0\n"), done.stderr


def test_standard_output_that_nobody_reads():
    program = """if True:
        import logging
        from greensock.proxy import AccessLog, Record
        logging.basicConfig()
        log = AccessLog()
        log.write(Record(0.0, "c", "p", "GET", b"/5", "1.1"))
        log.close()
    """
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode == 0
    assert b"access log on standard output: Broken pipe; lines lost so far: 1\n" in said


@pytest.mark.parametrize(
    ("arguments", "text"),
    [(("-", "clf"), "format='clf': 'combined', 'json' or"), (("-", "json", 0), "max_pending=0: .* expected")],
)
def test_an_access_log_checks_itself(arguments, text):
    with pytest.raises(ValueError, match=text):
        AccessLog(*arguments)


def test_standard_output_that_was_closed_at_the_start():
    """Descriptor 1 is whatever the program opened first: nothing is written there."""
    code = (
        "import os, sys; first = os.open('/dev/null', os.O_RDONLY); assert first == 1, first\n"
        "from greensock.proxy import AccessLog, parse_config\n"
        "config = parse_config({'log': {}, 'upstreams': {'a': {'servers': ['http://a']}}})\n"
        "for make in (AccessLog, config.gateway):\n"
        "    try: make()\n"
        "    except ValueError as error: print(error, file=sys.stderr)\n"
    )
    command = ["sh", "-c", 'exec "$0" -c "$1" >&-', sys.executable, code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.stderr == "target='-': standard output is closed: a path expected\n" * 2


def test_nothing_is_started_before_there_is_something_to_write(logs):
    log = logs("/nowhere/at/all")
    log.reopen()
    assert log.close()
    assert (log.written, log.dropped) == (0, 0)


def test_the_thread_is_one_of_the_system(logs, tmp_path, monkeypatch):
    """conftest has patched: a thread of threading is a greenlet here. It writes; lines are made by the hub."""
    assert monkey.is_module_patched("threading")
    ident, made, written = monkey.get_original("_thread", "get_ident"), [], []

    def form(of: Record) -> bytes:
        made.append(ident())
        return b"x\n"

    def write(fd: int, data: bytes) -> int:
        written.append(ident())
        return len(data)

    monkeypatch.setattr(access_log, "_write", write)
    log = logs(str(tmp_path / "log"), form)
    log.write(record())
    assert log.close()
    assert made == [ident()]
    assert written
    assert written[0] != ident()


# -- what goes wrong


class Gate:
    """A disk that takes its time: until it is opened."""

    def __init__(self) -> None:
        self.lock = monkey.get_original("_thread", "allocate_lock")()
        self.lock.acquire()
        self.is_waited_for = False
        self._write = access_log._write

    def __call__(self, fd: int, data: bytes) -> int:
        self.is_waited_for = True
        with self.lock:
            return self._write(fd, data)


@pytest.fixture
def gate(monkeypatch) -> Gate:
    gate = Gate()
    monkeypatch.setattr(access_log, "_write", gate)
    return gate


@pytest.mark.parametrize("limit", [1, 2, 50])
def test_at_most_so_many_wait(logs, tmp_path, caplog, gate, limit):
    path = tmp_path / "log"
    log = logs(str(path), max_pending=limit)
    log.write(record(0))
    wait_until(lambda: gate.is_waited_for)
    with caplog.at_level(logging.WARNING, "greensock.access"):
        for number in range(1, limit + 4):
            log.write(record(number))
    assert (log.pending, log.dropped) == (limit, 3)
    said = [each.getMessage() for each in caplog.records]
    assert said == [f"access log {path}: {limit} lines wait to be written; lines lost so far: 1"], "at once, and once"
    gate.lock.release()
    wait_until(lambda: log.written == limit + 1)
    assert numbers(path.read_bytes()) == list(range(limit + 1))
    log.write(record(99))
    assert log.close()
    assert (log.written, log.dropped) == (limit + 2, 3)


def test_what_waits_long_is_cut(logs, tmp_path, gate):
    made = []
    log = logs(str(tmp_path / "log"), max_pending=80)
    log.write(record())
    wait_until(lambda: gate.is_waited_for)
    for _ in range(20):
        made.append(record(agent=b"a" * 9999, referer=None, host=b"h" * 9999))
        made[-1].target = b"/" + b"1" * 9999
        log.write(made[-1])
    gate.lock.release()
    assert {len(each.target) for each in made[:11]} == {MAX_FIELD}
    assert {len(each.target) for each in made[11:]} == {MAX_KEPT}
    assert (len(made[-1].agent), len(made[-1].host), made[-1].referer) == (MAX_KEPT, MAX_KEPT, None)


def test_a_full_disk(logs, caplog, monkeypatch):
    log = logs("/dev/full")
    with caplog.at_level(logging.WARNING, "greensock.access"):
        for number in range(40):
            log.write(record(number))
        wait_until(lambda: log.dropped == 40)
        log.write(record())
        assert [each.getMessage() for each in caplog.records] == [
            "access log /dev/full: No space left on device; lines lost so far: 40"
        ]
        wait_until(lambda: log.dropped == 41)
        log.write(record())
        assert log.close()
        assert (log.written, log.dropped, len(caplog.records)) == (0, 42, 2)
        assert caplog.records[1].getMessage().endswith("; lines lost so far: 42"), "the last word is true"
        monkeypatch.setattr(access_log, "REPORT_EVERY", 0.0)
        log._writer.trouble = "again"
        log.close()
        log.close()
        assert len(caplog.records) == 3


def test_a_disk_that_gets_room_again(tmp_path):
    """The disk is full within a line: what follows begins with a new one."""
    program = """if True:
        import resource, signal, sys
        from greensock.proxy import AccessLog, Record
        PAUSE = 0.001
        def write(log, first, count):
            for number in range(first, first + count):
                log.write(Record(0.0, "c", "p", "GET", b"/%d" % number, "1.1"))
            while log.written + log.dropped < first + count:
                import gevent; gevent.sleep(PAUSE)
        log = AccessLog(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        write(log, 0, 100)
        lost = log.dropped
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        write(log, 100, 5)
        print(log.close(), lost, log.dropped, log.written)
    """
    path = tmp_path / "log"
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True)
    closed, lost, dropped, written = done.stdout.split()
    assert (closed, lost, int(dropped) + int(written)) == ("True", dropped, 105), done.stderr
    lines = path.read_bytes().splitlines(keepends=True)
    whole = len(lines) - 6
    assert numbers(b"".join(lines[:whole] + lines[-5:])) == [*range(whole), *range(100, 105)]
    assert int(written) == whole + 5
    assert not lines[whole].endswith(b"id=-\n")


def test_a_directory_that_comes_later(logs, tmp_path):
    path = tmp_path / "logs" / "access.log"
    log = logs(str(path))
    log.write(record(1))
    wait_until(lambda: log.dropped == 1)
    path.parent.mkdir()
    log.write(record(2))
    assert log.close()
    assert numbers(path.read_bytes()) == [2]


def test_a_fifo_that_nobody_reads(logs, tmp_path):
    path = str(tmp_path / "fifo")
    os.mkfifo(path)
    log = logs(path)
    log.write(record(1))
    wait_until(lambda: log.dropped == 1)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log.write(record(2))
    wait_until(lambda: log.written == 1)
    assert numbers(os.read(reader, 65536)) == [2]
    os.close(reader)
    log.write(record(3))
    wait_until(lambda: log.dropped == 2)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log.write(record(4))
    assert log.close()
    assert numbers(os.read(reader, 65536)) == [4]
    os.close(reader)


@pytest.mark.parametrize("is_given", [True, False])
def test_a_slow_reader(logs, tmp_path, is_given):
    """The pipe is full, then the queue; writing goes on at once, and what was not lost arrives whole."""
    path = str(tmp_path / "fifo")
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(path, os.O_WRONLY) if is_given else -1
    fcntl.fcntl(reader, 1031, 8192)  # F_SETPIPE_SZ
    log = logs(writer if is_given else path, max_pending=200)
    slowest = 0.0
    for number in range(1000):
        begun = time.perf_counter()
        log.write(record(number))
        slowest = max(slowest, time.perf_counter() - begun)
        if number % 100 == 99:
            wait_until(lambda: log.written or log.pending > 150)
    assert log.dropped > 500
    assert slowest < 0.5
    data = b""
    while log.written + log.dropped < 1000:
        data += read(reader)
    assert log.close()
    data += read(reader)
    found = numbers(data)
    assert len(found) == log.written
    assert found == sorted(found)
    os.close(reader)
    if is_given:
        os.close(writer)


def read(fd: int) -> bytes:
    import gevent

    gevent.sleep(PAUSE)
    try:
        return os.read(fd, 65536)
    except BlockingIOError:
        return b""


def test_close_gives_up_at_its_deadline(logs, tmp_path):
    reader, writer = os.pipe()
    log = logs(writer)
    for number in range(2000):
        log.write(record(number, agent=b"x" * 200))
    wait_until(lambda: log.written)
    begun = time.monotonic()
    assert log.close(0.1)
    assert 0.1 <= time.monotonic() - begun < 2
    assert log.written + log.dropped == 2000
    assert log.dropped > 1000
    os.close(reader)
    os.close(writer)


def test_close_does_not_wait_for_a_thread_that_the_system_holds(logs, tmp_path, gate):
    log = logs(str(tmp_path / "log"))
    log.write(record())
    wait_until(lambda: gate.is_waited_for)
    begun = time.monotonic()
    assert not log.close(0.01)
    assert time.monotonic() - begun < 2
    gate.lock.release()
    wait_until(lambda: log.close(0))
    assert (log.written, log.dropped) == (1, 0)  # it was under way


def test_a_format_that_makes_no_bytes(logs, tmp_path, caplog):
    log = logs(str(tmp_path / "log"), lambda made: "text")
    with caplog.at_level(logging.WARNING, "greensock.access"):
        log.write(record())
    assert (log.pending, log.dropped) == (0, 1)
    assert "'text' is no line: bytes expected" in caplog.text


def test_a_line_that_cannot_be_made(logs, tmp_path, caplog):
    path = tmp_path / "log"
    log = logs(str(path))
    with caplog.at_level(logging.WARNING, "greensock.access"):
        log.write(record(1))
        log.write(record(2, duration="long"))
        log.write(record(3))
        assert log.close()
    assert numbers(path.read_bytes()) == [1, 3]
    assert log.dropped == 1
    assert "a line could not be made" in caplog.text


def test_no_thread_to_be_had(logs, tmp_path, monkeypatch, caplog):
    path = tmp_path / "log"

    def refuse(*_):
        raise RuntimeError("can't start new thread")

    start = access_log._start_thread
    log, never = logs(str(path)), logs(str(path))
    monkeypatch.setattr(access_log, "_start_thread", refuse)
    log.write(record(1))
    never.write(record(1))
    assert "can't start new thread" in caplog.text
    assert never.close()
    assert never.dropped == 1
    monkeypatch.setattr(access_log, "_start_thread", start)
    log.write(record(2))
    assert log.close()
    assert numbers(path.read_bytes()) == [1, 2]


# -- rotation, forks


def test_rotation_loses_nothing(logs, tmp_path):
    path, old = tmp_path / "log", tmp_path / "log.1"
    log = logs(str(path))
    for number in range(100):
        log.write(record(number))
    wait_until(path.exists)
    path.rename(old)
    log.reopen()
    for number in range(100, 200):
        log.write(record(number))
    assert log.close()
    assert numbers(old.read_bytes()) == list(range(100))
    assert numbers(path.read_bytes()) == list(range(100, 200))


def test_a_fork_has_a_thread_of_its_own(tmp_path):
    program = """if True:
        from gevent import monkey; monkey.patch_all()
        import os, sys
        from greensock.proxy import AccessLog, Record
        PAUSE = 0.001
        def write(*numbers):
            for number in numbers:
                log.write(Record(0.0, "c", "p", "GET", b"/%d" % number, "1.1"))
        log = AccessLog(sys.argv[1])
        write(1, 2)
        while log.written < 2:
            import gevent; gevent.sleep(PAUSE)
        write(3)
        if os.fork() == 0:
            assert (log.pending, log.written) == (0, 0)
            write(4)
            is_done = log.close() and log.written == 1
            links = [f"/proc/self/fd/{fd}" for fd in range(3, 100)]
            os._exit(not is_done or sys.argv[1] in [os.readlink(link) for link in links if os.path.islink(link)])
        assert os.wait()[1] == 0
        write(5)
        print(log.close(), log.written, log.dropped)
    """
    path = tmp_path / "log"
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, timeout=30)
    assert done.stdout == "True 4 0\n", done.stderr
    assert sorted(numbers(path.read_bytes())) == [1, 2, 3, 4, 5]


def test_a_program_ends_though_the_log_is_not_closed(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    program = """if True:
        from greensock.proxy import AccessLog, Record
        import sys, os
        reader, writer = os.pipe()
        log = AccessLog(writer)
        for number in range(2000):
            log.write(Record(0.0, "c", "p", "GET", b"/5", "1.1"))
        while not log.written:
            pass
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
