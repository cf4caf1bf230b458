"""What operators are given beside the program: files to deploy it with, rules, a dashboard, documents."""

from __future__ import annotations

import configparser
import gzip
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import gevent
import pytest
import requests
from arbiters import arbiter
from conftest import PATIENCE, wait_until
from fake_operations import TOKEN
from peers import started
from proxies import Origin
from served import once

from greensock.cli import WRONG, main
from greensock.operations.operators_client import OperatorsClient
from greensock.proxy import load_config

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "examples" / "deploy"
#: Where metrics are named.
NAMING = [
    ROOT / "docs" / "grafana.json",
    ROOT / "docs" / "operations.md",
    ROOT / "docs" / "deploy.md",
    DEPLOY / "alerts.yaml",
]
COMMAND = [sys.executable, "-W", "error", "-m", "greensock"]


def unit(name):
    found = configparser.ConfigParser(interpolation=None, strict=True)
    found.optionxform = str
    found.read_string((DEPLOY / name).read_text())
    return found


def sound(folder, text):
    """Return the file of a configuration, with a token in the place of what the environment would say."""
    path = folder / "proxy.toml"
    path.write_text(text.replace("${GREENSOCK_OPERATIONS_TOKEN}", TOKEN * 2).replace("/var/log/greensock", str(folder)))
    return path


def documents_of_kubernetes():
    return {each["kind"]: each for each in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())}


def accepts(arguments, path, capsys):
    """Whether the command line takes these arguments; ``--config`` is where ours is."""
    arguments = [str(path) if each == "/etc/greensock/proxy.toml" else each for each in arguments]
    status = main([*arguments, "--check"])
    assert status == 0, capsys.readouterr().err
    return True


def test_the_units_of_systemd(tmp_path, capsys):
    service, sock = unit("greensock-proxy.service"), unit("greensock-proxy.socket")
    path = sound(tmp_path, (DEPLOY / "proxy.toml").read_text().replace(":8080", "127.0.0.1:0"))
    config = load_config(path)
    program, *arguments = shlex.split(service["Service"]["ExecStart"])
    assert program.endswith("/bin/greensock")
    assert accepts(arguments, path, capsys)
    assert service["Service"]["RestartPreventExitStatus"] == str(WRONG)
    assert float(service["Service"]["TimeoutStopSec"]) > config.timeouts.drain
    assert int(sock["Socket"]["Backlog"]) >= config.server.backlog
    assert service["Unit"]["Requires"] == "greensock-proxy.socket"
    verify = shutil.which("systemd-analyze")
    if verify is not None:
        for name in ("greensock-proxy.socket", "greensock-proxy.service"):
            text = (DEPLOY / name).read_text().replace(program, sys.executable)
            (tmp_path / name).write_text(text)
        done = subprocess.run(
            [verify, "verify", "--recursive-errors=no", str(tmp_path / "greensock-proxy.service")],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        # An older systemd (252) knows no notify-reload, and says so.
        said = [line for line in done.stderr.splitlines() if "greensock-proxy" in line and "notify-reload" not in line]
        assert said == []


def test_the_container_and_kubernetes(tmp_path, capsys):
    lines = (DEPLOY / "Containerfile").read_text().replace("\\\n", " ").splitlines()
    told = {
        name: json.loads(rest)
        for name, _, rest in (line.partition(" ") for line in lines)
        if name in ("ENTRYPOINT", "CMD")
    }
    found = documents_of_kubernetes()
    spec = found["Deployment"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    config = sound(tmp_path, found["ConfigMap"]["data"]["proxy.toml"].replace('":8080"', '"127.0.0.1:0"'))
    assert accepts([*told["ENTRYPOINT"][1:], *told["CMD"]], config, capsys)
    assert accepts([*told["ENTRYPOINT"][1:], *container["args"]], config, capsys)
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert spec["terminationGracePeriodSeconds"] > pause + load_config(config).timeouts.drain
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    probes = [container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")]
    assert [each["path"] for each in probes] == ["/healthz", "/healthz", "/readyz"]
    assert {ports[each["port"]] for each in probes} == {9180}
    assert f":{ports['operators']}" in config.read_text()
    assert [each["targetPort"] for each in found["Service"]["spec"]["ports"]] == ["http"], (
        "operators are not shown to all"
    )
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert (
        found["Service"]["spec"]["selector"]
        == found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]
        == labels
    )
    names = {each["name"] for each in spec["volumes"]}
    assert {each["name"] for each in container["volumeMounts"]} == names


def test_a_certificate_that_was_renewed_is_put_in_its_place(tmp_path):
    lineage, place = tmp_path / "live", tmp_path / "tls"
    lineage.mkdir()
    for number in (1, 2):
        for name in ("privkey.pem", "fullchain.pem"):
            (lineage / name).write_text(f"{name} {number}")
        environ = {**os.environ, "RENEWED_LINEAGE": str(lineage), "GREENSOCK_TLS": str(place)}
        environ["GREENSOCK_TLS_GROUP"] = str(os.getgid())
        subprocess.run(["sh", str(DEPLOY / "renewed.sh")], env=environ, check=True, timeout=PATIENCE)
        assert {path.name: path.read_text() for path in place.iterdir()} == {
            name: f"{name} {number}" for name in ("privkey.pem", "fullchain.pem")
        }
    assert stat.S_IMODE((place / "privkey.pem").stat().st_mode) == 0o640
    assert (place / "privkey.pem").stat().st_gid == os.getgid()


def holders(path, pid):
    """Return the processes, of this one and its children, that have a file open."""
    pids = [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    wanted = str(path.resolve())
    return [each for each in pids if wanted in map(os.path.realpath, Path(f"/proc/{each}/fd").iterdir())]


@once
def test_logs_are_rotated_and_no_line_is_lost(serve, tmp_path):
    """By logrotate itself, twice, while two workers write."""
    logrotate = shutil.which("logrotate", path=f"{os.environ['PATH']}:/usr/sbin")
    if logrotate is None:
        pytest.skip("logrotate is not installed")
    logs, rules = tmp_path / "logs", tmp_path / "logrotate.conf"
    logs.mkdir(mode=0o755)
    text = re.sub(r"(?s)\[operations\].*?\n\n", "", (DEPLOY / "proxy.toml").read_text())
    text = text.replace(":8080", "127.0.0.1:0").replace('path = "/healthz"\ninterval = 2\n', "")
    text = text.replace('"http://127.0.0.1:9000", "http://127.0.0.1:9001"', f'"{serve(Origin).url}"')
    path = sound(logs, text)
    command = [sys.executable, "-m", "greensock", "proxy", "--config", str(path), "--workers", "2"]
    with arbiter(tmp_path / "master", command=command) as master:
        rotate = (DEPLOY / "logrotate.conf").read_text().replace("/var/log/greensock", str(logs))
        signalled = rotate.replace(
            "systemctl kill --kill-whom=main --signal=USR1 greensock-proxy.service", f"kill -USR1 {master.process.pid}"
        )
        assert signalled != rotate
        rules.write_text(signalled)
        sent, is_over = [], False

        def ask(name):
            conn = master.kept()
            while not is_over:
                sent.append(f"/{name}-{len(sent)}")
                conn.request("GET", sent[-1])
                assert conn.getresponse().read().startswith(b"GET /")
            conn.close()

        asking = [gevent.spawn(ask, name) for name in range(8)]
        log, old = logs / "access.log", logs / "access.log.1"
        for _ in range(2):
            count = len(sent)
            wait_until(lambda: len(sent) > count + 200 and log.exists() and log.stat().st_size)  # noqa: B023
            arguments = [logrotate, "--force", "--state", str(tmp_path / "state"), str(rules)]
            done = subprocess.run(arguments, capture_output=True, text=True, timeout=PATIENCE)
            assert (done.returncode, done.stderr) == (0, "")
            wait_until(lambda: not holders(old, master.process.pid))
        wait_until(lambda: log.exists() and log.stat().st_size)
        is_over = True
        gevent.joinall(asking, raise_error=True)
        assert master.stop() == 0
    texts = [log.read_text(), old.read_text(), gzip.decompress((logs / "access.log.2.gz").read_bytes()).decode()]
    written = [json.loads(line)["target"] for text in texts for line in text.splitlines()]
    lost = set(sent) - set(written)
    assert (lost, len(written)) == (set(), len(sent)), [text.count("\n") for text in texts]
    assert all(texts)


def test_settings_of_the_kernel_are_there():
    lines = [line for line in (DEPLOY / "sysctl.conf").read_text().splitlines() if not line.startswith("#")]
    names = [line.partition(" = ")[0] for line in lines]
    assert len(names) == 3
    for name in names:
        assert Path("/proc/sys", *name.split(".")).exists(), name


def test_what_the_documents_link_to_is_there():
    for name in ("operations.md", "deploy.md"):
        text = (ROOT / "docs" / name).read_text()
        for link in re.findall(r"\]\(([^)#:]+)(?:#[\w-]*)?\)", text):
            assert (ROOT / "docs" / link).exists(), f"{name}: {link}"
        for file in re.findall(r"`(examples/[\w./]+)`", text):
            assert (ROOT / file).exists(), f"{name}: {file}"
        for target in re.findall(r"\]\((?:deploy|operations)\.md#([\w-]+)\)", text):
            headings = re.findall(
                r"^#+ (.*)$",
                "".join((ROOT / "docs" / each).read_text() for each in ("operations.md", "deploy.md")),
                re.MULTILINE,
            )
            slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert target in slugs, f"{name}: #{target}"


def test_the_dashboard_is_one():
    told = json.loads((ROOT / "docs" / "grafana.json").read_text())
    panels = [each for each in told["panels"] if each["type"] != "row"]
    assert len(panels) > 15
    assert len({each["id"] for each in told["panels"]}) == len(told["panels"])
    for panel in panels:
        assert panel["targets"], panel["title"]
        for target in panel["targets"]:
            assert 'job=~"$job", instance=~"$instance"' in target["expr"], panel["title"]
            assert target["expr"].count("(") == target["expr"].count(")")
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
    rules = yaml.safe_load((DEPLOY / "alerts.yaml").read_text())["groups"][0]["rules"]
    assert all({"alert", "expr", "annotations", "labels"} <= set(rule) for rule in rules)
    assert len({rule["alert"] for rule in rules}) == len(rules) > 8


@once
def test_a_proxy_as_operators_see_it(serve, tmp_path, capsys):
    """The real one: what ``top`` says, the page, a server that is drained and put back, the names of the metrics."""
    pytest.importorskip("prometheus_client")
    origins = [serve(Origin) for _ in range(2)]
    place = tmp_path / "operators"
    text = re.sub(r'address = "[^"]*:9180"', f'address = "{place}"', (DEPLOY / "proxy.toml").read_text())
    text = text.replace('":8080"', '"127.0.0.1:0"').replace('path = "/healthz"\ninterval = 2\n', "")
    for port, origin in zip((9000, 9001), origins, strict=True):
        text = text.replace(f"http://127.0.0.1:{port}", origin.url)
    path = sound(tmp_path, text)
    (tmp_path / "token").write_text(TOKEN * 2)
    more = ["--operations", str(place), "--token-file", str(tmp_path / "token")]
    command = [*COMMAND, "proxy", "--single", "--config", str(path)]
    with started(command, tmp_path, r"listening on (127\S+)", PYTHONPATH=str(ROOT)) as (process, says, where):
        client = OperatorsClient(str(place))
        for path in ("/", "/page.css", "/page.js"):
            assert client._ask("GET", path)[0] == 200
        for target in ("/a", "/b", "/no\x1bsuch"[:3], "/c"):
            assert requests.get(f"http://{where}{target}", timeout=PATIENCE).status_code == 200
        wait_until(lambda: client.status()["totals"]["requests"] == 4)
        assert main(["top", str(place), "--once", "--interval", "0.1"]) == 0
        output = capsys.readouterr().out
        names = [origin.url.removeprefix("http://") for origin in origins]
        for name in names:
            assert re.search(rf"app +{name} +up ", output), output
        assert re.search(rf"{process.pid}  serving", output)
        one, other = names
        assert main(["proxy", "drain", one, *more, "--wait", "10"]) == 0, capsys.readouterr().err
        assert "has nothing in hand" in capsys.readouterr().out
        assert {each["name"]: each["state"] for each in client.status()["upstreams"][0]["servers"]} == {
            one: "draining",
            other: "up",
        }
        before = [len(origin.seen) for origin in origins]
        for _ in range(4):
            assert requests.get(f"http://{where}/x", timeout=PATIENCE).status_code == 200
        assert [len(origin.seen) for origin in origins] == [before[0], before[1] + 4]
        assert main(["proxy", "ready", one, *more]) == 0
        wait_until(lambda: client.status()["upstreams"][0]["servers"][0]["state"] == "up")
        (tmp_path / "token").write_text("wrong")
        assert main(["proxy", "drain", one, *more]) == 1
        assert "refuses: 401: Authorization: Bearer TOKEN expected" in capsys.readouterr().err
        metrics = client._ask("GET", "/metrics")[1].decode()
        assert client._ask("GET", "/readyz")[0] == 200
        process.terminate()
        assert process.wait(PATIENCE) == 0, says()
    given = {(name, kind) for name, kind in re.findall(r"^# TYPE (\w+) (\w+)$", metrics, re.MULTILINE)}
    names = {name for name, kind in given if kind != "histogram"}
    names |= {
        f"{name}{end}" for name, kind in given if kind == "histogram" for end in ("", "_bucket", "_sum", "_count")
    }
    for file in NAMING:
        named = set(re.findall(r"\bgreensock_\w+", file.read_text()))
        assert len(named) > (0 if file.name == "deploy.md" else 10)
        assert named <= names, f"{file.name}: {sorted(named - names)}"
