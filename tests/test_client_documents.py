"""The blocks of docs/client.md and docs/locust.md run, and that of the README that shows users for Locust."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PATIENCE

from greensock import Lines, Server
from greensock.http import HTTPError, HTTPServer, Response

#: What gevent 25.9, the last for Python 3.10, says at the end of a patched program that has loggers.
_of_its_end = re.compile(
    r"Exception ignored in: <function _removeHandlerRef.*?greenlet is being finalized\n", re.DOTALL
)

DOCS = Path(__file__).resolve().parent.parent / "docs"


def programs(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(), re.DOTALL)


class Site(HTTPServer):
    def handle_request(self, request):
        body = request.body.read_all()
        match request.path:
            case "/notes":
                page = request.query_fields["page"]
                return Response.json({"got": body.decode(), "page": page, "who": request.headers["authorization"][:5]})
            case "/upload":
                return Response(" ".join(str(each in body) for each in (b'name="file"', b"the report")))
            case "/":
                return Response("hello")
        raise HTTPError(404)


def test_the_programs_of_the_client_run(serve, tmp_path):
    site = serve(Site)
    (tmp_path / "report.txt").write_text("the report")
    client, adapter = (
        each.replace("127.0.0.1:8080", f"127.0.0.1:{site.server_port}") for each in programs("client.md")
    )
    expected = "{'got': '{\"text\":\"hello\"}', 'page': '1', 'who': 'Basic'}\nTrue True\n404 Not Found\n\n"
    for program, output in ((client, expected), (adapter, "hello\n")):
        command = [sys.executable, "-c", program]
        environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=3 * PATIENCE
        )
        said = _of_its_end.sub("", done.stderr) if sys.version_info < (3, 11) else done.stderr
        assert (done.stdout, said) == (output, "")


@pytest.mark.skipif(importlib.util.find_spec("locust") is None, reason="needs Locust")
def test_the_programs_of_locust_run(serve):
    from locust.env import Environment
    from locust.event import Events

    class Store(Server):
        framer = Lines()

        def connection_recv(self, conn, data):
            conn.send(b"NONE\n")

    reported = []
    environment = Environment(events=Events())
    environment.events.request.add_listener(lambda name, exception, **_: reported.append((name, exception)))
    visitor, keeper = programs("locust.md")
    (shown,) = [each for each in programs("../README.md") if "greensock.locust" in each]
    users = ((visitor, "Visitor", "page", Site), (keeper, "Keeper", "get", Store), (shown, "Visitor", "page", Site))
    for program, name, task, server in users:
        space: dict[str, object] = {"__name__": "locustfile"}
        exec(program, space)
        kind = space[name]
        place = f"127.0.0.1:{serve(server).server_port}"
        kind.host = f"http://{place}" if server is Site else place
        user = kind(environment)
        getattr(user, task)()
        if server is Site:
            user.client.http.close()
        user.on_stop()
    assert reported == [("page", None), ("connect", None), ("GET", None), ("/", None)]
