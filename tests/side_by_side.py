"""Run the whole suite in several processes side by side: most of its time is waiting.

    python tests/side_by_side.py                        # what ``make test`` does
    python tests/side_by_side.py --processes 1 -- -v    # all that stands behind -- is pytest's

First with the engine in Python, then with the compiled one, if it is there. Each process is a pytest of its own, with
the whole suite before it. A test file is run by the one that claims it first.
The tests marked ``alone`` come last, with nothing beside them: they measure, or hold a deadline that a busy machine
would miss. pytest-xdist is no way: its workers wait for work on a thread, which gevent has patched.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

#: pytest's status if all passed, and if it was asked for tests of which none is in its share.
PASSED, NO_TESTS = 0, 5
#: Processes side by side on each core.
PER_CORE = 2


def run(processes: int, more: list[str]) -> int:
    """Run all tests over both engines; return the status of the first that failed."""
    status = run_over("1", processes, more)
    os.environ["GREENSOCK_PURE"] = "0"
    if subprocess.run([sys.executable, "-c", "import greensock, sys; sys.exit(not greensock.compiled)"]).returncode:
        print("the engine is not compiled: no more was tested than the one in Python", flush=True)
        return status
    return max(status, run_over("0", processes, more))


def run_over(pure: str, processes: int, more: list[str]) -> int:
    """Run all tests, print what each process had to say, and return the status of the first that failed."""
    os.environ["GREENSOCK_PURE"] = pure
    print(f"the engine {'in Python' if pure == '1' else 'compiled'}:", flush=True)
    with tempfile.TemporaryDirectory(prefix="claims-") as place:
        running = [_start(["-m", "not alone", f"--claims={place}", *more]) for _ in range(processes)]
        try:
            status = max(_end(*each) for each in running)
        finally:
            for process, _ in running:
                process.kill()
    files = sorted(Path("tests").glob("test_*.py"))
    where = [] if more else [str(each) for each in files if "mark.alone" in each.read_text()]
    return max(status, _end(*_start(["-m", "alone", *where, *more])))


def _start(arguments: list[str]) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
    output = tempfile.TemporaryFile()  # noqa: SIM115  # _end closes it
    command = [sys.executable, "-m", "pytest", *arguments]
    return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT), output


def _end(process: subprocess.Popen[bytes], output: IO[bytes]) -> int:
    status = process.wait()
    output.seek(0)
    with output:
        sys.stdout.buffer.write(output.read())
    sys.stdout.flush()
    return PASSED if status == NO_TESTS else abs(status)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = max(1, int(PER_CORE * len(os.sched_getaffinity(0))))
    parser.add_argument("--processes", type=int, default=default, help="side by side; default: %(default)s")
    parser.add_argument("more", nargs="*", metavar="ARGUMENT", help="for pytest")
    options = parser.parse_args()
    os.chdir(Path(__file__).resolve().parent.parent)
    return run(options.processes, options.more)


if __name__ == "__main__":
    sys.exit(main())
