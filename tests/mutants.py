"""``make mutants``: break one thing at a time in a module, and see whether its own tests notice.

    python tests/mutants.py                       # every module below, a hundred mutants each: hours
    python tests/mutants.py turns pool --count 20 --seed 7
    python tests/mutants.py --only survivors.txt  # those in its lines, as they were printed

A sample of each module's mutants, drawn with a seed, is run against the test files named for it, in copies of the tree,
with a time limit: of their tests those that run the broken line, one of each function first and the quick ones before
the slow ones. A mutant that no test notices *survives*: a line that does not matter, or a missing test. Those that no
test can notice are named in ``unnoticed.py``, each with the reason, and are neither run nor counted. What was found is
printed as it comes, and written to ``--output`` as JSON. Not part of ``make test``: it takes hours.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Empty, SimpleQueue

from coverage import CoverageData
from unnoticed import KNOWN

ROOT = Path(__file__).resolve().parent.parent

#: The tests of the engine, of the reverse proxy, and of the pool of an HTTP client.
ENGINE = (
    "lifecycle", "poller", "sending", "receiving", "connection", "upcalls", "turns", "flags", "server", "server_limits",
    "acceptor", "framing", "pipes", "limits_of_time", "stopping", "transport", "forks", "blame", "fairness",
    "server_api", "client", "http_server", "send_soon", "dialling", "handing_over", "tls",
)  # fmt: skip
PROXY = (
    "proxy_relay", "proxy_response_relay", "proxy_server", "proxy_failing", "proxy_features", "proxy_uploads",
    "proxy_shortages", "proxy_bound", "proxy_tunnel", "proxy_hostile", "proxy_faults", "proxy_clients_leave",
    "proxy_timeouts", "proxy_access_log", "proxy_decisions", "proxy_admission", "proxy_buffering", "proxy_sticky",
    "proxy_prefixes",
)  # fmt: skip
POOL = ("http_pool", "pool", "http_client", "http_client_answers", "http_client_failures", "proxy_bound")
#: What is broken, by its file below greensock/, and the tests that are to notice.
MODULES = {
    "poller": ("core/poller.py", ENGINE),
    "turns": ("core/turns.py", ENGINE),
    "lifecycle": ("core/lifecycle.py", ENGINE),
    "sending": ("core/sending.py", ENGINE),
    "receiving": ("core/receiving.py", ENGINE),
    "send_queue": ("core/send_queue.py", ENGINE),
    "relay": ("proxy/relay.py", PROXY),
    "request_relay": ("proxy/request_relay.py", PROXY),
    "response_relay": ("proxy/response_relay.py", PROXY),
    "pool": ("pool_state.py", POOL),
}
#: What clients are held to, and what operators are told.
LIMITS = ("client_table", "client_limits", "networks", "proxy_guard", "shared_limits", "shared_pages")
OPERATIONS = ("figures", "sampling", "shared_pages", "top", "operations", "status_page")
MODULES |= {
    name: (f"limits/{name}.py", LIMITS)
    for name in ("access_lists", "client_limits", "client_table", "networks", "redis_share")
}
MODULES |= {
    name: (f"operations/{name}.py", OPERATIONS)
    for name in (
        *("commands", "exposition", "figures", "histograms", "hub_watchdog", "last_requests", "operations_options"),
        *("operations_server", "operators_client", "server_orders", "status_page", "status_reading", "status_report"),
        *("top", "top_report", "worker_watch"),
    )
}
MODULES |= {
    "limiter": ("core/limiter.py", LIMITS),
    "sampling": ("core/sampling.py", OPERATIONS),
    "shared_pages": ("shared_pages.py", (*LIMITS, *OPERATIONS)),
    "wsgi_input": ("http/wsgi/wsgi_input.py", ("http_wsgi", "http_wsgi_answers", "http_wsgi_server", "http_forms")),
    "answer_buffer": ("proxy/answer_buffer.py", ("answer_buffer", "proxy_buffering")),
    "admission": ("proxy/admission.py", ("proxy_admission",)),
    "passwords": ("proxy/passwords.py", ("proxy_admission",)),
    "prefixes": ("proxy/prefixes.py", ("proxy_prefixes",)),
    "routes": ("proxy/routes.py", ("proxy_routes", "proxy_prefixes")),
    "reloading": ("reloading.py", ("reloading",)),
    "error_log": ("proxy/log/error_log.py", ("proxy_logs",)),
    "line_format": ("proxy/log/line_format.py", ("proxy_logs",)),
    "targets": ("proxy/log/targets.py", ("proxy_logs",)),
}
#: What a process of tests is told: the modules as they are written are what is broken.
ALWAYS = {"PYTHONDONTWRITEBYTECODE": "1", "GREENSOCK_PURE": "1"}
#: Seconds that one test may take, and those from which on it is asked last; how many tests are asked at first.
TEST_TIMEOUT, SLOW, FEW = 30, 1.0, 60
#: Seconds that all tests of a module may take, with nothing broken.
EXPLORING = 1800
#: What the copies have; not what was compiled, or the tests that run once would leave themselves to that.
COPIED = ("greensock", "tests", "examples", "loadtests", "pyproject.toml", "setup.py", "README.md")

COMPARED: dict[type[ast.cmpop], str] = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Is: "is not",
    ast.IsNot: "is",
    ast.In: "not in",
    ast.NotIn: "in",
}
CALCULATED: dict[type[ast.operator], str] = {ast.Add: "-", ast.Sub: "+", ast.Mult: "//", ast.Div: "*", ast.BitAnd: "|"}
#: Functions in which nothing is broken: they are looked at by people only.
LEFT_OUT = frozenset({"__repr__", "__str__"})


@dataclass(frozen=True)
class Mutant:
    """One thing that is broken: the text from ``start`` to ``end`` is replaced."""

    line: int
    start: int
    end: int
    old: str
    new: str
    #: The function, with its class, and the line of the source.
    where: str
    text: str

    @property
    def change(self) -> str:
        """What becomes what, in one line."""
        return f"{' '.join(self.old.split())}  ->  {' '.join(self.new.split())}"

    def __str__(self) -> str:
        return f"{self.line}: {' '.join(self.old.split())[:70]}  ->  {' '.join(self.new.split())[:70]}"


class Finder(ast.NodeVisitor):
    """Finds what can be broken."""

    def __init__(self, source: str) -> None:
        self.found: list[Mutant] = []
        self._source = source
        self._within: list[str] = []
        self._lines = source.splitlines()
        self._starts = [0]
        for line in source.encode().splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))

    def _add(self, node: ast.AST, new: str) -> None:
        start = self._starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
        end = self._starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]
        old = self._source.encode()[start:end].decode()
        if old != new:
            line = node.lineno  # type: ignore[attr-defined]
            text = self._lines[line - 1].strip()
            self.found.append(Mutant(line, start, end, old, new, ".".join(self._within), text))

    def _text(self, node: ast.AST) -> str:
        return ast.get_source_segment(self._source, node) or ""

    # Annotations, defaults, decorators, constants of the module, exports and words for people are left alone.

    def visit_Module(self, node: ast.Module) -> None:
        for statement in node.body:
            if isinstance(statement, ast.ClassDef | ast.FunctionDef):
                self.visit(statement)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._within.append(node.name)
        for statement in node.body:
            if isinstance(statement, ast.FunctionDef):
                self.visit(statement)
        self._within.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if node.name not in LEFT_OUT:
            self._within.append(node.name)
            for statement in node.body:
                self.visit(statement)
            self._within.pop()

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        target = node.targets[0]
        if isinstance(target, ast.Name) and target.id.startswith("__"):
            return
        if isinstance(target, ast.Attribute):
            self._add(node, "pass")
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._add(node, "pass")
        self.generic_visit(node)

    def visit_Delete(self, node: ast.Delete) -> None:
        self._add(node, "pass")

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call):
            if self._text(node.value).startswith("log."):
                return
            self._add(node, "pass")
        if not isinstance(node.value, ast.Constant):
            self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        self._add(node, "pass")

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is None or (isinstance(node.value, ast.Constant) and node.value.value is None):
            return
        if not (isinstance(node.value, ast.Constant) and node.value.value is False):  # which None says as well
            self._add(node.value, "None")
        self.visit(node.value)

    def visit_Break(self, node: ast.Break) -> None:
        self._add(node, "pass")

    def visit_Continue(self, node: ast.Continue) -> None:
        self._add(node, "pass")

    def visit_If(self, node: ast.If) -> None:
        if self._text(node.test) == "TYPE_CHECKING":
            return
        self._add(node.test, f"not ({self._text(node.test)})")
        self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._add(node.test, f"not ({self._text(node.test)})")
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        word = "or" if isinstance(node.op, ast.And) else "and"
        self._add(node, "(" + f" {word} ".join(f"({self._text(value)})" for value in node.values) + ")")
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not):
            self._add(node, f"bool({self._text(node.operand)})")
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        # Whether two readings of the clock are the same to the last bit is nobody's business.
        is_order = isinstance(node.ops[0], ast.Lt | ast.LtE | ast.Gt | ast.GtE)
        if is_order and "monotonic()" in self._text(node):
            pass
        elif len(node.ops) == 1 and type(node.ops[0]) in COMPARED:
            left, right = self._text(node.left), self._text(node.comparators[0])
            self._add(node, f"({left}) {COMPARED[type(node.ops[0])]} ({right})")
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if type(node.op) in CALCULATED and not any(map(_is_text, (node.left, node.right))):
            self._add(node, f"(({self._text(node.left)}) {CALCULATED[type(node.op)]} ({self._text(node.right)}))")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self._add(node, str(not node.value))
        elif _is_number(node):
            self._add(node, f"{self._text(node)} + 1")

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        pass


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant | ast.JoinedStr) and not _is_number(node)


def _is_number(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool)


def mutants_of(source: str) -> list[Mutant]:
    """Return all that can be broken, in the order of the source; each still is Python."""
    finder = Finder(source)
    finder.visit(ast.parse(source))
    in_order = sorted(set(finder.found), key=lambda each: (each.start, each.end, each.new))
    return [mutant for mutant in in_order if _parses(source, mutant)]


def broken(source: str, mutant: Mutant) -> str:
    """Return the source with one thing broken."""
    raw = source.encode()
    return (raw[: mutant.start] + mutant.new.encode() + raw[mutant.end :]).decode()


def _parses(source: str, mutant: Mutant) -> bool:
    try:
        ast.parse(broken(source, mutant))
    except SyntaxError:
        return False
    return True


# -- running


class Copy:
    """A copy of the tree, in which one mutant at a time lives."""

    def __init__(self, place: Path) -> None:
        self.place = place
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, place / name, ignore=shutil.ignore_patterns("__pycache__", "_compiled"))
            else:
                shutil.copy(source, place / name)

    def run(self, tests: list[str], seconds: float) -> str | None:
        """Run tests until one fails, and return its name; None if all pass.

        The name is empty if the time is over, or nothing could be run at all.
        """
        report = self.place / "report.xml"
        report.unlink(missing_ok=True)
        with self.start(["-x", f"--junitxml={report}", *tests]) as process:
            status = _ended(process, seconds)
        if status == 0:
            return None
        failed = [name for name, _, failed in _cases(report) if failed] if status == 1 else []
        return failed[0] if failed else ""

    def start(self, more: list[str], **environment: str) -> subprocess.Popen[bytes]:
        options = ["-q", "-p", "no:cacheprovider", f"--timeout={TEST_TIMEOUT}", "-o", "addopts=", "-p", "no:anyio"]
        command = [sys.executable, "-m", "pytest", *options, "--strict-markers", "-o", "junit_family=xunit1", *more]
        return subprocess.Popen(
            command,
            cwd=self.place,
            env={**os.environ, "PYTHONPATH": str(self.place), **ALWAYS, **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def explore(self, files: list[str], processes: int) -> Coverage:
        """Run the test files with nothing broken, some side by side, and return which of their tests run what.

        A test that fails then, most likely as it is slowed down, is left out.
        """
        (self.place / "coverage.ini").write_text("[run]\nconcurrency = gevent,thread\n")
        claims = self.place / "claims"
        claims.mkdir()
        cover = ["--cov=greensock", "--cov-context=test", "--cov-config=coverage.ini", "--cov-report="]
        running = [
            self.start(
                [*cover, f"--claims={claims}", f"--junitxml=times-{number}.xml", *files],
                COVERAGE_FILE=str(self.place / f"lines-{number}"),
            )
            for number in range(processes)
        ]
        for process in running:
            with process:
                _ended(process, EXPLORING)
        shutil.rmtree(claims)
        data, seconds = CoverageData(no_disk=True), {}
        for number in range(processes):
            share = CoverageData(str(self.place / f"lines-{number}"))
            share.read()
            data.update(share)
            for name, took, failed in _cases(self.place / f"times-{number}.xml"):
                if failed:
                    print(f"  left out, as it fails with nothing broken: {name}", flush=True)
                else:
                    seconds[name] = took
        return Coverage(self.place, data, seconds)


def _ended(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """Return the status of a process; None if it did not end in time. What it had started is ended with it."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def _cases(report: Path) -> Iterator[tuple[str, float, bool]]:
    """Yield the name of each test in a report, its seconds, and whether it failed."""
    if not report.exists():
        return
    for case in ElementTree.parse(report).iter("testcase"):
        file = case.get("file", "")
        group = case.get("classname", "").removeprefix(file.removesuffix(".py").replace("/", ".")).strip(".")
        name = "::".join([file, *([group] if group else []), case.get("name", "")])
        yield name, float(case.get("time", 0)), case.find("failure") is not None or case.find("error") is not None


@dataclass(frozen=True)
class Coverage:
    """Which tests run a line, and the seconds that each takes."""

    place: Path
    data: CoverageData
    seconds: dict[str, float]

    def tests_of(self, path: Path) -> dict[int, list[str]]:
        """Return the tests that run each line of a module, in the order in which they are asked."""
        lines = {}
        for line, contexts in self.data.contexts_by_lineno(str(self.place / path)).items():
            names = {context.rpartition("|")[0] for context in contexts}
            lines[line] = _in_order([name for name in names if name in self.seconds], self.seconds)
        return lines


def _in_order(names: list[str], seconds: dict[str, float]) -> list[str]:
    """Put one test of each function first, the quick ones before the slow ones."""
    functions: dict[str, int] = {}
    keys = {}
    for name in sorted(names, key=lambda each: (seconds[each], each)):
        function = name.partition("[")[0]
        functions[function] = functions.get(function, 0) + 1
        keys[name] = (seconds[name] > SLOW, min(functions[function], 3), seconds[name])
    return sorted(names, key=lambda each: keys[each])


def known_of(name: str, everything: list[Mutant]) -> Iterator[Mutant]:
    """Yield the mutants of a module that no test can notice."""
    for each in KNOWN:
        if each.module == name:
            alike = [mutant for mutant in everything if (mutant.where, mutant.text, mutant.change) == each[1:4]]
            if not alike[each.at or 0 :]:
                print(f"  unnoticed.py names what is not there: {each}", flush=True)
            yield from alike if each.at is None else alike[each.at : each.at + 1]


def judge(
    name: str,
    copies: list[Copy],
    choose: Callable[[Path, list[Mutant]], list[Mutant]],
    skips_known: bool,
    explored: dict[tuple[str, ...], Coverage],
    most: int | None = None,
) -> dict[str, object]:
    """Run some of a module's mutants, and return what came of it."""
    file, tests = MODULES[name]
    path = Path("greensock") / file
    source = (copies[0].place / path).read_text()  # not what the tree has become since
    everything = mutants_of(source)
    chosen = choose(path, everything)
    mine = set(known_of(name, everything)) if skips_known else set()
    sample = [mutant for mutant in chosen if mutant not in mine]
    files = [f"tests/test_{test}.py" for test in tests]
    if tests not in explored:
        explored[tests] = copies[0].explore(files, len(copies))
    coverage = explored[tests]
    print(f"{name}: {len(chosen)} of {len(everything)} mutants, {len(chosen) - len(sample)} known", flush=True)
    todo: SimpleQueue[Mutant] = SimpleQueue()
    for mutant in sample:
        todo.put(mutant)
    survivors: list[Mutant] = []
    common = (path, source, coverage.tests_of(path), coverage.seconds, todo, survivors, most)
    jobs = [threading.Thread(target=_work, args=(copy, *common)) for copy in copies]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    killed = len(sample) - len(survivors)
    share = killed / len(sample) if sample else 1.0
    print(f"{name}: {killed} of {len(sample)} noticed, {share:.0%}", flush=True)
    rows = [asdict(mutant) for mutant in sorted(survivors, key=lambda each: each.start)]
    known = len(chosen) - len(sample)
    return {"module": str(path), "known": known, "sample": len(sample), "killed": killed, "survivors": rows}


def _work(
    copy: Copy,
    path: Path,
    source: str,
    lines: dict[int, list[str]],
    seconds: dict[str, float],
    todo: SimpleQueue[Mutant],
    survivors: list[Mutant],
    most: int | None,
) -> None:
    for mutant in _taken(todo):
        (copy.place / path).write_text(broken(source, mutant))
        try:
            survives = _survives(copy, lines.get(mutant.line), seconds, most)
        finally:
            (copy.place / path).write_text(source)
        if survives:
            survivors.append(mutant)
            print(f"  survives: {path}:{mutant}", flush=True)
        if (left := todo.qsize()) % 10 == 0:
            print(f"  {left} to go", flush=True)


def _survives(copy: Copy, tests: list[str] | None, seconds: dict[str, float], most: int | None) -> bool:
    """Return whether no test notices; one that fails must do so again, alone, as most of them have deadlines."""
    if not tests:  # another process runs it, or nobody
        tests = sorted(seconds, key=lambda each: seconds[each])
    for some in (tests[:FEW], tests[FEW:most]):
        left = some
        while left:
            failed = copy.run(left, 3 * sum(seconds[test] for test in left) + 60)
            if failed is None:
                break
            if not failed or copy.run([failed], 3 * seconds.get(failed, TEST_TIMEOUT) + 60) is not None:
                return False
            left = left[left.index(failed) + 1 :] if failed in left else []
    return True


def choose_sample(seed: int, count: int) -> Callable[[Path, list[Mutant]], list[Mutant]]:
    """Return what draws a module's sample, the same one for the same seed and source."""

    def choose(path: Path, everything: list[Mutant]) -> list[Mutant]:
        name = next(name for name, (file, _) in MODULES.items() if path == Path("greensock") / file)
        return random.Random(f"{seed} {name}").sample(everything, min(count, len(everything)))

    return choose


def choose_printed(lines: list[str]) -> Callable[[Path, list[Mutant]], list[Mutant]]:
    """Return what finds the mutants of lines as they were printed; those that have moved by their text."""

    def choose(path: Path, everything: list[Mutant]) -> list[Mutant]:
        found = []
        for line in lines:
            _, is_of_it, rest = line.strip().partition(f"{path}:")
            if is_of_it:
                number, _, text = rest.partition(": ")
                alike = [mutant for mutant in everything if str(mutant).partition(": ")[2] == text]
                found += sorted(alike, key=lambda mutant: abs(mutant.line - int(number)))[:1]
                if not alike:
                    print(f"  not there: {line.strip()}", flush=True)
        return found

    return choose


def _taken(todo: SimpleQueue[Mutant]) -> Iterator[Mutant]:
    while True:
        try:
            yield todo.get_nowait()
        except Empty:
            return


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"{', '.join(MODULES)}; default: all")
    parser.add_argument("--count", type=int, default=100, help="mutants of each; default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="of the sample; default: %(default)s")
    parser.add_argument(
        "--tests", type=int, help="so many tests for a mutant at the most; default: all that run its line"
    )
    parser.add_argument("--only", type=Path, metavar="FILE", help="no sample, but the mutants in its lines")
    parser.add_argument(
        "--by", nargs="+", metavar="TEST", help="by these tests or files alone, without a look at which run the line"
    )
    parser.add_argument("--jobs", type=int, default=2, help="at a time; default: %(default)s")
    parser.add_argument("--output", type=Path, help="a file for the results, as JSON")
    options = parser.parse_args()
    unknown = set(options.modules) - set(MODULES)
    if unknown:
        parser.error(f"no such module: {', '.join(sorted(unknown))}; there are {', '.join(MODULES)}")
    choose, modules = choose_sample(options.seed, options.count), options.modules or list(MODULES)
    if options.only is not None:
        lines = options.only.read_text().splitlines()
        choose = choose_printed(lines)
        modules = [name for name in modules if any(f"greensock/{MODULES[name][0]}:" in line for line in lines)]
    # A shell ignores it for what it starts in the background, and so would the servers of the tests.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as place:
        copies = [Copy(Path(place) / str(number)) for number in range(options.jobs)]
        explored: dict[tuple[str, ...], Coverage] = {}
        if options.by:
            given = Coverage(copies[0].place, CoverageData(no_disk=True), dict.fromkeys(options.by, TEST_TIMEOUT))
            explored = {tests: given for _, tests in MODULES.values()}
        results = [judge(name, copies, choose, options.only is None, explored, options.tests) for name in modules]
    if options.output is not None:
        options.output.write_text(json.dumps({"seed": options.seed, "modules": results}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
