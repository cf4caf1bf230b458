"""A few requests of different kinds through the proxy, and what came back."""

from __future__ import annotations

import os
from collections.abc import Callable
from urllib.parse import quote

import gevent

from examples._site import Site
from greensock import TLS
from greensock.http import HTTPClient
from greensock.proxy import ReverseProxy

__all__ = ["take_tour", "url_of"]

MIB = 1 << 20


class Tour:
    """Asks the proxy; every answer is checked."""

    def __init__(self, proxy: ReverseProxy, sites: list[Site]) -> None:
        self._sites = sites
        self._base = url_of(proxy)
        self._client = HTTPClient(tls=TLS(verify=False))  # of a certificate that was made for a try, if at all
        self._proxy = proxy
        self._all_right = True

    def take(self) -> bool:
        """Return whether every answer was as it should be."""
        print("A few requests through it:")
        with self._client:
            for name, step in (
                ("a page", self._page),
                ("an upload of 8 MiB", self._upload),
                ("a download of 64 MiB", self._download),
                ("a WebSocket", self._websocket),
                ("a request that must be refused", self._refused),
                ("6 requests while a server is down", self._server_down),
                ("requests until it is back", self._server_back),
            ):
                self._report(name, step)
        return self._all_right

    def _report(self, name: str, step: Callable[[], str]) -> None:
        """Take a step, and say what came back."""
        try:
            told = step()
        except Exception as error:
            self._all_right = False
            told = f"FAILED: {error!r}"
        print(f"  {name:36} {told}", flush=True)

    def _get(self, path: str) -> bytes:
        with self._client.get(self._base + path) as answer:
            assert answer.status == 200, answer
            return answer.read_all(128 * MIB)

    def _page(self) -> str:
        page = self._get("/")
        assert b"It works" in page
        return f"200, {len(page)} bytes"

    def _upload(self) -> str:
        pieces = (os.urandom(65536) for _ in range(128))
        with self._client.post(self._base + "/upload", pieces) as answer:
            told = answer.read_all()
        assert told == b'{"bytes": 8388608}', told
        return f"200, {told.decode()}"

    def _download(self) -> str:
        with self._client.get(f"{self._base}/download/{64 * MIB}") as answer:
            size = sum(map(len, answer))
        assert size == 64 * MIB, size
        return f"200, {size} bytes"

    def _websocket(self) -> str:
        asked = {"Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}
        answer = self._client.get(self._base + "/echo", headers=asked)
        assert answer.status == 101, answer
        with answer.detach() as conn:
            conn.send(b"\x81\x85\0\0\0\0hello")
            echoed = conn.read_exactly(7, timeout=5)
            assert echoed == b"\x81\x05hello", echoed
        return "101, then 'hello' there and back"

    def _refused(self) -> str:
        with self._client.request("TRACE", self._base + "/") as answer:
            assert answer.status == 405, answer
            return f"405, Allow: {answer.headers['allow']}"

    def _server_down(self) -> str:
        self._sites[0].stop(0)
        for _ in range(6):
            self._get("/headers")
        return f"all answered by the other one, {self._proxy.retries} of them after a second try"

    def _server_back(self) -> str:
        self._sites[0].start()
        before = self._sites[0].statistics().requests
        for _ in range(30):
            self._get("/headers")
            if self._sites[0].statistics().requests > before:
                return "the server that was down answers again"
            gevent.sleep(0.5)
        raise AssertionError("the server that came back was not asked")


def url_of(proxy: ReverseProxy) -> str:
    """Return where a program of this machine reaches it."""
    address = proxy.address
    scheme = "http" if proxy.tls is None else "https"
    if isinstance(address, str):
        return f"{scheme}+unix://{quote(address, safe='')}"
    host, port = address[:2]
    if host in ("::", "0.0.0.0"):
        host = "127.0.0.1"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def take_tour(proxy: ReverseProxy, sites: list[Site]) -> bool:
    """Ask a proxy that stands before these; return whether every answer was as it should be."""
    return Tour(proxy, sites).take()
