"""A Flask application as they are written, behind a proxy that it trusts: ``gunicorn flask_app:app``."""

import hashlib
import os
import time

from flask import Flask, Response, jsonify, redirect, request, send_file, session, stream_with_context, url_for
from werkzeug.middleware.proxy_fix import ProxyFix

#: Seconds between two looks.
PAUSE = 0.005

app = Flask(__name__)
app.secret_key = "of the tests"
app.wsgi_app = ProxyFix(app.wsgi_app, x_for=1, x_proto=1, x_host=1, x_prefix=1)


@app.route("/seen", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
def seen():
    """What came."""
    digest, length = hashlib.sha256(), 0
    while piece := request.stream.read(50_000):
        digest.update(piece)
        length += len(piece)
    return jsonify(
        method=request.method,
        url=request.url,
        client=request.remote_addr,
        headers=[[name.lower(), value] for name, value in request.headers],
        length=length,
        digest=digest.hexdigest(),
    )


@app.get("/gated")
def gated():
    """A piece at once, the other when a file is there."""

    def pieces():
        yield b"first"
        deadline = time.monotonic() + 10
        while not os.path.exists(request.args["gate"]) and time.monotonic() < deadline:
            time.sleep(PAUSE)
        yield b" second"

    return Response(stream_with_context(pieces()), content_type="text/plain")


@app.get("/numbers/<int:count>")
def numbers(count):
    """Many pieces whose length nobody knows before."""
    return Response((b"%d\n" % number for number in range(count)), content_type="text/plain")


@app.get("/events")
def events():
    """A stream of events, as browsers read them."""
    pieces = (f"data: {word}\n\n" for word in ("one", "two", "three"))
    return Response(pieces, content_type="text/event-stream")


@app.post("/mirror")
def mirror():
    """Send back what comes, as it comes."""
    source = request.stream

    def pieces():
        while piece := source.read(30_000):
            yield piece

    return Response(stream_with_context(pieces()), content_type="application/octet-stream")


@app.post("/refuse")
def refuse():
    """Refuse a body without a look at it."""
    return "no", 403


@app.post("/upload")
def upload():
    """A form with files, as browsers send it."""
    files = {name: hashlib.sha256(file.read()).hexdigest() for name, file in request.files.items()}
    return jsonify(fields=request.form, files=files)


@app.get("/download/<int:size>")
def download(size):
    return Response(b"x" * size, headers={"Content-Disposition": 'attachment; filename="x.bin"'})


@app.get("/self")
def own_text():
    """A file with its validators, ranges and all."""
    return send_file(__file__, mimetype="text/plain", conditional=True, etag=True)


@app.get("/login")
def login():
    session["user"] = request.args["user"]
    answer = redirect(url_for("home", _external=True))
    answer.set_cookie("plain", "a b; c", httponly=True)
    answer.set_cookie("other", "1", max_age=60, samesite="Strict")
    return answer


@app.get("/home")
def home():
    return f"{session.get('user', 'nobody')} {request.cookies.get('plain', '-')} {request.cookies.get('other', '-')}"


@app.get("/status/<int:status>")
def status(status):
    return ("" if status in (204, 304) else f"this is {status}"), status


@app.get("/break-off")
def break_off():
    """An answer whose end never comes."""

    def pieces():
        yield b"x" * 100_000
        raise RuntimeError("in the middle of it")

    return Response(pieces())


@app.route("/die", methods=["GET", "POST"])
def die():
    """Take the worker down."""
    os._exit(1)
