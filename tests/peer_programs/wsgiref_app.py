"""wsgiref's server: HTTP/1.0, and no length if the application has none."""

import hashlib
from wsgiref.simple_server import WSGIRequestHandler, make_server


def app(environ, start_response):
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-Digest", hashlib.sha256(body).hexdigest())])
    path = environ["PATH_INFO"]
    if path.startswith("/numbers/"):
        return (b"%d\n" % number for number in range(int(path[9:])))
    return iter([environ["REQUEST_METHOD"].encode(), b" ", path.encode()])


class Quiet(WSGIRequestHandler):
    def log_message(self, *arguments):
        pass


with make_server("127.0.0.1", 0, app, handler_class=Quiet) as server:
    print(f"port {server.server_port}", flush=True)
    server.serve_forever()
