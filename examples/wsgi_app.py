"""Serves a Flask application: a list of notes that clients add to, and an upload that is counted as it comes."""

from gevent import monkey

monkey.patch_all()

import sys
from collections.abc import Iterator
from typing import Any

sys.path.append(__file__.rpartition("examples")[0])  # so that `python examples/wsgi_app.py` finds the others

from examples._main import run
from greensock.http import WSGIServer

try:
    from flask import Flask, Response, request
except ImportError:
    sys.exit("this example serves a Flask application: pip install flask")

app = Flask(__name__)
notes: list[str] = []


@app.get("/")
def show() -> dict[str, Any]:
    return {"notes": notes, "you": request.remote_addr}


@app.post("/")
def add() -> tuple[dict[str, Any], int]:
    notes.append(request.form["note"])
    return {"number": len(notes)}, 201


@app.put("/upload")
def upload() -> dict[str, int]:
    pieces = iter(lambda: request.stream.read(65536), b"")  # streams: the upload may be larger than memory
    return {"bytes": sum(map(len, pieces))}


@app.get("/export")
def export() -> Response:
    def lines() -> Iterator[str]:
        for number, note in enumerate(notes, 1):
            yield f"{number}. {note}\n"

    return Response(lines(), mimetype="text/plain")


class NoteServer(WSGIServer):
    def __init__(self, listener: str) -> None:
        super().__init__(listener, app, log=None)


if __name__ == "__main__":
    run(NoteServer, __doc__)
