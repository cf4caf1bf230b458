"""Routes: which function answers, and what is said where none does."""

from __future__ import annotations

import pytest
from conftest import read_all

from greensock.http import HTTPServer, Response, RouteTable

routes = RouteTable(converters={"even": lambda text: int(text) if int(text) % 2 == 0 else int("odd")})


def say(name):
    def answer(request, **values):
        return Response(f"{request.method} {name} {values}")

    return answer


for path, methods in (
    ("/", ["GET"]),
    ("/users/", ["GET", "POST"]),
    ("/users/<int:user>", ["GET", "PUT"]),
    ("/users/<int:user>", ["DELETE"]),
    ("/users/me", ["GET"]),
    ("/users/<name>", ["PATCH"]),
    ("/é", ["GET"]),
    ("/ids/<uuid:id>", ["GET"]),
    ("/even/<even:n>/<x>", ["GET"]),
    ("/files/<path:rest>", ["GET"]),
    ("/own", ["OPTIONS", "HEAD", "GET"]),
):
    routes.route(path, methods)(say(path))


CASES = [
    ("GET", "/", 200, "GET / {}"),
    ("HEAD", "/", 200, ""),
    ("GET", "/?a=/users/", 200, "GET / {}"),
    ("POST", "/", 405, "GET, HEAD, OPTIONS"),
    ("OPTIONS", "/", 204, "GET, HEAD, OPTIONS"),
    ("OPTIONS", "*", 204, None),
    ("GET", "/users", 404, None),
    ("GET", "/users//", 404, None),
    ("POST", "/users/", 200, "POST /users/ {}"),
    ("GET", "/users/7", 200, "GET /users/<int:user> {'user': 7}"),
    ("DELETE", "/users/%37", 200, "DELETE /users/<int:user> {'user': 7}"),
    ("GET", "/users/me", 200, "GET /users/me {}"),
    ("GET", "/users/m%65", 200, "GET /users/me {}"),
    ("PATCH", "/users/me", 200, "PATCH /users/<name> {'name': 'me'}"),
    ("PATCH", "/users/7", 200, "PATCH /users/<name> {'name': '7'}"),
    ("PATCH", "/users/a%2Fb", 200, "PATCH /users/<name> {'name': 'a/b'}"),
    ("POST", "/users/7", 405, "DELETE, GET, HEAD, OPTIONS, PATCH, PUT"),
    ("GET", "/users/%D9%A7", 405, "OPTIONS, PATCH"),  # a digit, but no ASCII one
    ("GET", f"/users/{'7' * 19}", 405, "OPTIONS, PATCH"),
    ("GET", "/%C3%A9", 200, "GET /é {}"),
    ("GET", "/ids/x", 404, None),
    ("GET", f"/ids/{'0' * 32}", 200, f"GET /ids/<uuid:id> {{'id': UUID('{'0' * 8}-0000-0000-0000-{'0' * 12}')}}"),
    ("GET", "/even/4/y", 200, "GET /even/<even:n>/<x> {'n': 4, 'x': 'y'}"),
    ("GET", "/even/5/y", 404, None),
    ("GET", "/files/a//../b%2Fc/", 200, "GET /files/<path:rest> {'rest': 'a//../b/c/'}"),
    ("GET", "/files/", 404, None),
    ("GET", "http://a/files/x", 200, "GET /files/<path:rest> {'rest': 'x'}"),
    ("OPTIONS", "/own", 200, "OPTIONS /own {}"),
    ("BREW", "/own", 405, "GET, HEAD, OPTIONS"),
    ("CONNECT", "a:1", 404, None),
]


def test_who_answers(serve, connect):
    server = serve(HTTPServer, handle_request=routes, refused_methods=frozenset())
    for method, target, status, said in CASES:
        sock = connect(server)
        sock.sendall(f"{method} {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        head, _, body = read_all(sock).decode().partition("\r\n\r\n")
        assert (int(head.split()[1]), method, target) == (status, method, target)
        if status == 200:
            assert body == said
        else:
            allow = [line for line in head.split("\r\n") if line.startswith("Allow: ")]
            assert allow == ([f"Allow: {said}"] if said else [])


def test_what_cannot_be_added():
    table = RouteTable()
    table.get("/a/<b>")(say("x"))
    table.post("/a/<b>")(say("x"))
    for path, methods, words in (
        ("a", ["GET"], "path='a': a slash"),
        ("/<a", ["GET"], "<name> or <kind:name> expected"),
        ("/x<a>", ["GET"], "<name> or <kind:name> expected"),
        ("/<>", ["GET"], "<name> or <kind:name> expected"),
        ("/<float:a>", ["GET"], "'float' is none of int, path, str, uuid"),
        ("/<path:a>/b", ["GET"], "nothing can stand behind"),
        ("/<a>/<int:a>", ["GET"], "'a' twice"),
        ("/b", "GET", "methods='GET'"),
        ("/b", [], "methods="),
        ("/b", ["get"], "methods="),
        ("/a/<b>", ["GET"], "GET /a/<b>: it is there already"),
    ):
        with pytest.raises(ValueError, match=words):
            table.route(path, methods)(say("x"))
