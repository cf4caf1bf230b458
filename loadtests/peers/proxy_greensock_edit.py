"""greensock's proxy with an upcall that edits a field of each request."""

from gevent import monkey

monkey.patch_all()

from greensock.http import Headers
from greensock.proxy import Gateway, Relay, ReverseProxy, Route, ServerOptions, UpstreamOptions
from loadtests.peers import common, http_common


class Editing(ReverseProxy):
    def edit_request(self, relay: Relay, headers: Headers) -> None:
        headers.set("X-Edited", "by an upcall")


if __name__ == "__main__":
    chosen = http_common.options()
    sock = http_common.listener(chosen)
    upstream = UpstreamOptions("origin", (ServerOptions(f"http://{chosen.upstream}"),))
    server = Editing(sock, Gateway([upstream], [Route("origin")]))
    server.start()
    common.announce(sock)
    server.serve_forever()
