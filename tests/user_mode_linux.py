"""Run tests in user-mode Linux: a kernel that is a program, with what this machine's has not.

    python tests/user_mode_linux.py sctp [-- ARGUMENTS OF PYTEST]     # what ``make test-sctp`` does
    python tests/user_mode_linux.py lossy [-- ARGUMENTS OF PYTEST]    # what ``make test-lossy`` does

``sctp``: the conformance suite and the tests of SCTP, where there is SCTP. ``lossy``: over a loopback that is 25 ms
late each way and loses 2 % of the packets. That kernel has this machine's files, to which the tests do not write: what
they write is in a file system in memory. It needs Debian's packages ``user-mode-linux``, ``kmod`` and
``iproute2``; without them, or where it does not start, it says so, and the exit status is 3.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: Its packages, and the programs in them.
PACKAGES = {"user-mode-linux": "linux", "kmod": "modprobe", "iproute2": "tc"}
#: The exit status if they are not there, or that kernel does not start here.
MISSING = 3
#: Seconds after which it is ended.
PATIENCE = 1800
#: In the order in which they must be loaded: without a hash SCTP cannot listen.
MODULES = {"sctp": ["hmac", "md5", "sha1_generic", "sctp"], "lossy": ["sch_netem"]}
#: What runs by default, and what of that with ``--short``, as the continuous integration does: 20 s each. One end of
#: each connection, and over the lossy network of that what ends, and what is too much for the buffers, by TLS 1.3.
TESTS = {
    "sctp": ["tests/test_conformance.py", "tests/test_sctp.py", "-k", "sctp"],
    "lossy": ["tests/test_conformance.py", "tests/test_tls.py", "tests/test_tls_http.py", "tests/test_proxy_tls.py"],
}
SHORT = {
    "sctp": [*TESTS["sctp"][:2], "-k", "sctp-accepted or test_sctp"],
    "lossy": [*TESTS["lossy"][:1], "-k", "1.3-accepted and (message or end or close or fits or senders or splice)"],
}

#: What is set of the network. A packet of SCTP that finds no room is sent again after ``rto_min``, a second as on the
#: Internet: over a loopback with packets of 64 KiB, which soon find none, a megabyte took two.
NETWORK = {
    "sctp": """ip link set lo mtu 9000
for each in min:10 max:200 initial:20; do echo ${each#*:} >/proc/sys/net/sctp/rto_${each%:*}; done
for each in rmem wmem; do echo 1000000 >/proc/sys/net/core/${each}_default; done""",
    "lossy": "tc qdisc add dev lo root netem limit 100000 delay 25ms loss 2%",
}

INIT = """#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
echo >{booted}
mkdir -p /run/tmp /run/m/lib/modules
for release in /usr/lib/uml/modules/*; do ln -s "$release" /run/m/lib/modules/; done
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin TMPDIR=/run/tmp HOME=/run/tmp
export PYTHONDONTWRITEBYTECODE=1 GREENSOCK_PURE={pure}
ip link set lo up
for module in {modules}; do modprobe -d /run/m "$module" || absent="$absent $module"; done
{network}
ulimit -n 8192
cd {root}
{command} >>{said} 2>&1
status=$?
[ -z "$absent" ] || {{ echo "that kernel has no module$absent" >>{said}; status=1; }}
echo $status >{status}
sync
echo o >/proc/sysrq-trigger
exec sleep 10
"""


def missing() -> list[str]:
    """Return the packages that are not installed."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return [package for package, program in PACKAGES.items() if shutil.which(program, path=path) is None]


def run(kind: str, arguments: list[str]) -> int:
    """Run the tests, print what they say, and return their status."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="uml-") as name:
        place = Path(name)
        said, status, init, booted = place / "said", place / "status", place / "init", place / "booted"
        said.touch()
        init.write_text(
            INIT.format(
                pure=os.environ.get("GREENSOCK_PURE", "0"),
                modules=" ".join(MODULES[kind]),
                network=NETWORK[kind],
                root=shlex.quote(str(ROOT)),
                command=shlex.join(command),
                said=said,
                status=status,
                booted=booted,
            )
        )
        init.chmod(0o755)
        boot = ["linux", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "rw", "mem=1024M", "con=null"]
        boot += ["con0=fd:0,fd:1", "quiet", f"init={init}", f"uml_dir={place}"]
        console = place / "console"
        with open(console, "wb") as output:
            process = subprocess.Popen(
                boot, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its processes are ours, and none outlives it
            process.wait()
            print(said.read_text(errors="replace"), end="", flush=True)
        kernel = console.read_text(errors="replace")
        if not booted.exists():
            print(f"NOT RUN: {kind}: user-mode Linux does not start here: {kernel[-500:]}")
            return MISSING
        result = int(status.read_text()) if status.exists() else 1
        if not status.exists():
            print(f"the tests did not end: {kernel[-2000:]}")
    print(f"{kind}, in user-mode Linux: status {result}, {time.monotonic() - began:.0f} s", flush=True)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=[*TESTS])
    parser.add_argument("--short", action="store_true", help="the most telling half minute of it")
    parser.add_argument("more", nargs="*", metavar="ARGUMENT", help="for pytest, in place of the tests it runs")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if absent := missing():
        print(f"NOT RUN: {options.kind} needs user-mode Linux; not installed: {', '.join(absent)} (Debian's packages)")
        return MISSING
    return run(options.kind, options.more or (SHORT if options.short else TESTS)[options.kind])


if __name__ == "__main__":
    sys.exit(main())
