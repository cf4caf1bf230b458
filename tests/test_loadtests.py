"""The load tests: a tiny run of every experiment, tables and plots made from it, what happens when things go wrong."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from served import once

from greensock import DROP, Server
from loadtests import bench, experiments, figures, generator, looks, measure, native, progress, results, tables
from loadtests.experiments import APART, PLANS
from loadtests.plan import Case, Plan, Scale
from loadtests.process import PURE, ROOT, Peer, StartError
from loadtests.servers import HTTP, NAMES, PROXIES, SERVERS, TCP, missing

plots = pytest.importorskip("loadtests.plots", reason="needs matplotlib: pip install -e '.[bench]'")

#: Seconds: the tiny run takes a minute and a half on two idle cores.
pytestmark = [pytest.mark.timeout(600), once]

INSTALLED = [name for name in NAMES if missing(name) is None]
#: Enough to have every mode of the peers, and the peers that need little but greensock.
FEW = ("greensock_upcalls", "greensock_upcalls_pure", "greensock_blocking", "gevent_streamserver", "epoll")
MORE = ("http_server", "http_client", "proxy_aiohttp", "websocket_upcalls", "udp_greensock", "locust_greensock")
MORE += ("tls_greensock", "tls_site", "workers_http")
FEW += tuple(name for name in MORE if name in INSTALLED)
QUICK = Scale(rounds=1, seconds=0.05, warmup=0.02, quick=True)


def run(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", f"loadtests.{module}", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def succeed(module: str, *arguments: object) -> str:
    done = run(module, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """The results of a tiny run of every experiment."""
    path = tmp_path_factory.mktemp("results")
    for names in (["all"], [*APART]):
        succeed("bench", *names, "--quick", "--seconds", 0.3, "--servers", ",".join(FEW), "--output", path)
    return path


# -- experiments


@pytest.mark.parametrize("name", [*PLANS, *APART])
def test_a_tiny_run_of(name, tiny):
    content = results.load(tiny, name)
    plan = (PLANS | APART)[name](QUICK)
    expected = {(case.label, server) for case in plan.cases for server in case.servers if server in FEW}
    assert {(sample["case"], sample["server"]) for sample in content["samples"]} == expected
    assert not [sample for sample in content["samples"] if sample["failed"]]
    assert content["machine"]["cores"] > 0
    assert content["versions"]["greensock"]
    assert content["scale"]["quick"] is True
    messages: Counter[str] = Counter()
    for sample in content["samples"]:
        assert sample["took_seconds"] > 0
        if sample["mode"] != "idle":
            messages[sample["server"]] += sample["messages"]
    # On a busy machine none of 200 short-lived connections may have come to its end within the moment of a tiny run.
    assert all(messages.values()), messages


def test_every_server_takes_part(tmp_path):
    """One case of every mode that a server may have to play, on each of them."""
    succeed("bench", "messages", "--quick", "--seconds", 0.05, "--cases", "32", "--output", tmp_path)
    succeed("bench", "latency", "--quick", "--seconds", 0.05, "--cases", "disturbed", "--output", tmp_path)
    for name, kinds in (("messages", ("echo", "flood")), ("latency", ("disturbed",))):
        content = results.load(tmp_path, name)
        for kind in kinds:
            found = {sample["server"] for sample in content["samples"] if sample["case"].startswith(kind)}
            wanted = experiments.SLOW_SERVERS if kind == "disturbed" else experiments.SERVERS
            assert found == set(wanted) & set(INSTALLED)


def test_the_ramp_begins_with_none_and_ends_with_all(tiny):
    for sample in results.load(tiny, "connections")["samples"]:
        opened = [count for _, count in sample["ramp"]]
        assert opened == sorted(opened)
        assert sample["opened"] == sample["connections"] == opened[-1]


def test_an_upcall_that_blocks_delays_its_own_connection_only(tiny):
    for sample in results.load(tiny, "latency")["samples"]:
        if sample.get("disturbed") or sample["case"].startswith("disturbed"):
            assert sample["marked_latency"]["p50_us"] >= 50_000
            assert sample["latency"]["p50_us"] < 50_000


def test_the_issues_points_are_measured_at_full_scale():
    plans = {name: plan(Scale()) for name, plan in (PLANS | APART).items()}
    assert all(plan.rounds >= 5 for plan in plans.values())
    counts = (32, 128, 512, 1024, 2048, 8192, 19000)
    wanted = [f"{kind} {count}" for kind in ("echo", "flood") for count in counts]
    assert [case.label for case in plans["messages"].cases] == wanted
    (ramp,) = plans["connections"].cases
    assert ramp.parameters["connections"] == 19000
    assert [case.parameters["share"] for case in plans["latency"].cases] == [0.3, 0.6, 0.9, 0.3]
    labels = {case.label for plan in plans.values() for case in plan.cases}
    targets = (*figures.TARGETS, *figures.HTTP_TARGETS, *figures.PROXY_TARGETS)
    targets += (*figures.COMPILED_TARGETS, *figures.WEBSOCKET_TARGETS, *figures.UDP_TARGETS, *figures.LOCUST_TARGETS)
    targets += (*figures.TLS_TARGETS, *figures.HANDSHAKES_TARGETS)
    targets += (*figures.HELD_TARGETS, *figures.RELOAD_TARGETS, *figures.HERD_TARGETS)
    assert {target.case for target in targets} <= labels


def test_all_experiments_take_less_than_half_an_hour():
    plans = [plan(Scale()) for plan in PLANS.values()]
    minutes = sum(bench.estimated(bench.steps(plan, NAMES)) for plan in plans) / 60
    assert 20 < minutes < 30


def test_rivals_are_interleaved_and_rotate():
    cases = tuple(Case(label, {}, dict, ("a", "b", "c")) for label in ("one", "two"))
    plan = Plan("p", "P", cases, rounds=2)
    order = [(number, case.label, server) for number, case, server in bench.steps(plan, ["a", "b", "c"])]
    assert [server for number, _, server in order if number == 0] == ["a", "b", "c"] * 2
    assert [server for number, _, server in order if number == 1] == ["b", "c", "a"] * 2
    assert [label for _, label, _ in order] == (["one"] * 3 + ["two"] * 3) * 2


def fake(measured: dict[str, object]) -> Plan:
    """Return a plan of two rounds in which a server yields what is given, or raises it."""

    def step(server: str) -> dict[str, object]:
        value = measured[server]
        if isinstance(value, Exception):
            raise value
        return value

    case = Case("echo 1", {"connections": 1}, step, tuple(measured))
    return Plan("p", "P", (case,), rounds=2)


def samples_of(plan: Plan, servers: Sequence[str]) -> tuple[list[dict[str, object]], str]:
    said = io.StringIO()
    samples = bench.Run(plan, servers, progress.Display(said), later=0.0).run()
    return samples, said.getvalue()


def test_a_server_that_does_not_start_is_left_out_and_said_so():
    good = {"rate": 1.0, "failed": 0, "failures": {}}
    plan = fake({"a": StartError("a did not start: no a today"), "b": good})
    samples, said = samples_of(plan, ["a", "b"])
    assert [(sample["round"], sample["server"], sample["failed"]) for sample in samples] == [
        (0, "a", 1),
        (0, "b", 0),
        (1, "b", 0),
    ]
    assert "a: left out: a did not start: no a today\n" in said


def test_what_fails_is_said_and_kept():
    plan = fake({"a": {"rate": 1.0, "failed": 3, "failures": {"mismatch": 3}}})
    samples, said = samples_of(plan, ["a"])
    assert [sample["failed"] for sample in samples] == [3, 3]
    assert "a, echo 1: 3 failed {'mismatch': 3}\n" in said


def test_the_display_says_experiment_server_round_and_time_left():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    said = Terminal()
    display = progress.Display(said, now=lambda: 0.0)
    display.step("messages", (2, 5), "echo 32", "epoll", 125.0)
    display.close()
    assert "messages  round 2/5  echo 32  epoll  0:00 gone, 2:05 left" in said.getvalue()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nothing"], "invalid choice: 'nothing'"),
        (["figures", "--servers", "epoll,apache"], "no such server: apache; there are greensock_upcalls, "),
        (["figures", "--cases", "nosuch"], "figures: no case with 'nosuch' in its name"),
        (["figures", "--rounds", "0"], "0: at least 1 expected"),
        (["figures", "--seconds", "0"], "0: at least 0.01 expected"),
        (["figures", "--seconds", "nan"], "nan: at least 0.01 expected"),
        ([], "the following arguments are required: NAME"),
    ],
    ids=["experiment", "server", "case", "rounds", "seconds", "not a number", "nothing"],
)
def test_what_the_bench_does_not_take(arguments, text, capsys):
    with pytest.raises(SystemExit) as ended:
        bench.main(arguments)
    assert ended.value.code != 0
    assert text in capsys.readouterr().err + str(ended.value.code)


def test_the_bench_without_a_compiler(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(native, "BUILD", tmp_path / "build")
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setattr(bench.os, "sched_setaffinity", lambda pid, cores: None)
    assert bench.main(["figures", "--quick", "--output", str(tmp_path)]) == 2
    assert "no C compiler: no-such-compiler\nThe traffic generator is written in C" in capsys.readouterr().out


def test_tiny_runs_are_kept_apart(monkeypatch):
    monkeypatch.setenv("QUICK", "1")
    assert results.directory(results.is_quick()) == results.RESULTS / "quick"
    monkeypatch.setenv("QUICK", "0")
    assert results.directory(results.is_quick()) == results.RESULTS


# -- the generator finds what is wrong


class Lies(Server):
    def connection_recv(self, conn, data):
        conn.send(bytes([data[0] ^ 1]) + data[1:])


class Leaves(Server):
    def connection_recv(self, conn, data):
        return DROP


class Resets(Server):
    def connection_recv(self, conn, data):
        conn.abort()


class Silent(Server):
    def connection_recv(self, conn, data):
        pass


class Talkative(Server):
    def connection_recv(self, conn, data):
        conn.send([data, b"and more"])


@pytest.mark.parametrize(
    ("kind", "failure"),
    [(Lies, "mismatch"), (Leaves, "short"), (Resets, "reset"), (Silent, "timeout"), (Talkative, "mismatch")],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_wrong_answer_is_a_failure(kind, failure, serve):
    host, port = serve(kind).address
    address = f"{host}:{port}"
    result = generator.run("pingpong", address, connections=4, seconds=0.2, deadline=1, stall=0.3, drain=0.1)
    assert result.failures[failure] == result.failed == 4
    assert result.messages == 0


def test_nobody_listens():
    result = generator.run("pingpong", "127.0.0.1:1", connections=2, seconds=0.1)
    assert result.failures["refused"] == 2


def test_a_generator_that_cannot_run():
    with pytest.raises(generator.Failed, match="--rate must be above 0"):
        generator.run("openloop", "127.0.0.1:1", rate=0, seconds=1)
    with pytest.raises(generator.Failed, match="unknown option --colour"):
        generator.run("pingpong", "127.0.0.1:1", colour="red")


def test_a_measurement_by_itself():
    found = measure.pingpong("epoll", connections=2, seconds=0.05, warmup=0)
    assert found["failed"] == 0
    assert found["server_us"] > 0


def test_a_server_that_does_not_start():
    with pytest.raises(StartError, match=r"the thing did not start: .*No module named nosuch"):
        Peer("the thing", command=[sys.executable, "-m", "nosuch"]).__enter__()
    with pytest.raises(StartError, match="the thing did not start: no answer"):
        Peer("the thing", command=[sys.executable, "-c", "import signal; signal.pause()"], timeout=0.1).__enter__()


# -- tables


def sample(case: str, server: str, number: int, failed: int = 0, **values: object) -> dict[str, object]:
    connections = int(case.split()[-1])
    return {"round": number, "case": case, "server": server, "connections": connections, "failed": failed, **values}


def test_medians_and_spread():
    assert results.spread([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
    assert tables.compact([4.0, 4.4, 3.9]) == "4.00 ±10%"
    assert tables.compact([0.0, 0.0]) == "0.00"
    assert tables.compact([]) == "-"
    assert tables.spread([1000.0, 3000.0, 2000.0]) == "2,000 (1,000-3,000)"
    assert [tables.number(value) for value in (None, float("nan"), 0.123, 45.67, 123.4)] == [
        "-",
        "-",
        "0.12",
        "45.7",
        "123",
    ]


def test_a_round_in_which_anything_failed_is_in_no_median():
    samples = [sample("echo 32", "epoll", number, rate=100.0 + number) for number in range(5)]
    samples += [sample("echo 32", "epoll", 5, failed=7, rate=1e9)]
    (row,) = [line for line in tables.samples_table(samples).splitlines() if "epoll" in line]
    assert [cell.strip() for cell in row.strip("|").split("|")] == ["echo 32", "epoll", "102 (100-104)", "7"]


def test_a_series_is_sorted_by_connections_and_leaves_failures_out():
    samples = [
        sample("echo 128", "epoll", 0, rate=2.0),
        sample("echo 32", "epoll", 0, rate=1.0),
        sample("echo 32", "epoll", 1, failed=1, rate=9.0),
        sample("flood 32", "epoll", 0, rate=3.0),
        sample("echo 32", "trio_streams", 0, rate=4.0),
    ]
    assert results.series(samples, "echo", "epoll", "rate") == [(32, [1.0]), (128, [2.0])]


def test_a_ratio_is_taken_within_a_round():
    """The machine is twice as slow in the second round: the ratio does not see it."""
    pairs = {"greensock_upcalls": (3.0, 6.0, 3.3), "gevent_streamserver": (10.0, 20.0, 10.0)}
    samples = [
        sample("echo 64", server, number, server_us=value)
        for server, values in pairs.items()
        for number, value in enumerate(values)
    ]
    row = figures.assess(samples)[0]
    assert (row.measured, row.least, row.greatest) == pytest.approx((0.3, 0.3, 0.33))
    assert row.met
    assert figures.assess(samples)[2].met is None


def test_tables_of_a_tiny_run(tiny):
    printed = succeed("tables", "--results", tiny)
    for name in tables.TABLES:
        assert f"{name}\n\n" in printed
    assert "Not measured" not in printed
    assert SERVERS["greensock_upcalls"].title in printed
    assert succeed("tables", "memory", "--results", tiny).startswith("memory\n\n| ")


def test_the_documents_have_what_the_results_give():
    """To bring them up to date: python -m loadtests.tables --write."""
    for document in tables.DOCUMENTS:
        text = document.read_text()
        assert tables.filled(text, results.RESULTS) == text, document


def test_documents_show_only_what_is_drawn_and_was_measured():
    for document in tables.DOCUMENTS:
        for name in re.findall(r"results/(\w+)\.png", document.read_text()):
            assert name in plots.PLOTS
            picture = results.RESULTS / f"{name}.png"
            assert picture.exists() == (results.RESULTS / f"{name}.json").exists(), picture


def test_tables_are_put_between_their_markers(tiny):
    old = "before\n<!-- table: memory -->\nold\n<!-- end -->\nbetween\n<!-- table: targets -->\n<!-- end -->\nafter\n"
    new = tables.filled(old, tiny)
    assert "old" not in new
    assert re.fullmatch(r"before\n<!-.*\| greensock.*-->\nbetween\n<!-.*\| figure.*-->\nafter\n", new, re.DOTALL)
    assert tables.filled(new, tiny) == new


def test_a_table_without_results_says_so(tmp_path):
    text = tables.filled("<!-- table: memory -->\n<!-- end -->", tmp_path)
    assert "Not measured yet: `python -m loadtests.bench memory`." in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- table: nosuch -->\n<!-- end -->", "no such table: nosuch; there are figures, "),
        ("<!-- table: memory -->\n", "a marker is not as it should be"),
        ("<!-- table: memory -->\n<!-- table: figures -->\n<!-- end -->", "a marker is not as it should be"),
    ],
    ids=["no such table", "no end", "no end before the next"],
)
def test_markers_that_are_wrong(text, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        tables.filled(text, tmp_path)


def test_writing_puts_tables_into_the_documents_but_not_those_of_tiny_runs(tmp_path, tiny, monkeypatch, capsys):
    document = tmp_path / "page.md"
    empty = "<!-- table: memory -->\n<!-- end -->\n"
    document.write_text(empty)
    monkeypatch.setattr(tables, "DOCUMENTS", (document,))
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setenv("QUICK", "1")
    tables.main(["--write", "--results", str(tiny)])
    assert document.read_text() == empty
    monkeypatch.delenv("QUICK")
    tables.main(["--write", "--results", str(tiny)])
    assert "| greensock upcalls" in document.read_text()
    assert "page.md: brought up to date" in capsys.readouterr().out


def test_a_table_that_does_not_exist():
    with pytest.raises(SystemExit, match="no such table: nosuch; there are figures, "):
        tables.main(["nosuch"])


# -- plots


def test_plots_of_a_tiny_run(tiny):
    drawn = succeed("plots", "--results", tiny).split()
    assert [Path(line).stem for line in drawn] == list(PLANS)
    for line in drawn:
        head = Path(line).read_bytes()[:24]
        assert head.startswith(b"\x89PNG\r\n")
        assert int.from_bytes(head[16:20], "big") >= 800


def test_every_experiment_and_every_server_has_its_looks():
    assert list(plots.PLOTS) == list(PLANS)
    # Of what goes a flat path there are tables only.
    drawn = [name for name in NAMES if SERVERS[name.removesuffix(PURE)].kind != "flat"]
    assert list(looks.STYLES) == drawn
    seeds = [style.colour for _, style in looks.SEED_STYLES.values()]
    for kind in (TCP, HTTP, PROXIES):
        colours = [*(looks.STYLES[name].colour for name in kind), *seeds]
        assert len(set(colours)) == len(colours)


def test_the_seeds_curves():
    opened = plots.seed_curves("connections_over_time_s")
    assert {name: points[-1] for name, points in opened.items()} == {
        "synchronous_sockets": (2, 20000),
        "kernel_sockets": (9, 20000),
        "user_mode_epoll": (16, 20000),
    }
    rates = plots.seed_curves("messages_per_s_by_connections")
    assert {name: [x for x, _ in points] for name, points in rates.items()} == {
        name: [32, 128, 512, 1024, 2048, 8192, 20000] for name in looks.SEED_STYLES
    }


def test_percentiles_are_of_all_rounds_together():
    rounds = [{"latency": {"histogram": [[1000.0, 90], [2000.0, 9]]}}, {"latency": {"histogram": [[5000.0, 1]]}}]
    assert plots.cumulated(rounds) == [(10.0, 1.0), (100.0, 2.0), (200.0, 5.0)]


def test_all_that_failed_is_not_drawn(tiny, tmp_path):
    """A server of which every measurement failed has no curve, and the others have theirs."""
    for name in PLANS:
        content = results.load(tiny, name)
        samples = [{**each, "failed": int(each["server"] == "epoll")} for each in content["samples"]]
        (tmp_path / f"{name}.json").write_text(json.dumps({**content, "samples": samples}))
    assert len(succeed("plots", "--results", tmp_path).split()) == len(PLANS)


def test_plots_of_what_was_not_measured(tmp_path, capsys):
    assert plots.main(["--results", str(tmp_path)]) == 0
    assert plots.main(["memory", "--results", str(tmp_path)]) == 1
    assert "memory: not measured yet: python -m loadtests.bench memory" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        plots.main(["nosuch"])
    assert "no such experiment: nosuch; there are figures, " in capsys.readouterr().err
