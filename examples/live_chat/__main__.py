"""A chat in the browser: rooms over WebSockets, on one machine or on several that share a Redis.

Open http://127.0.0.1:5000/ in two windows. With --redis what is said on one machine is heard on all: each publishes to
Redis, and passes on what it hears from there. Who reads too slowly is dropped, so that nobody else waits.
"""

from gevent import monkey

monkey.patch_all()

import json
import logging
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import gevent

sys.path.append(__file__.rpartition("examples")[0])  # so that `python examples/live_chat` finds the others

from examples._main import run
from greensock.http import HTTPError, HTTPServer, Request, Response, WebSocket, WebSocketOptions

log = logging.getLogger("live_chat")

#: What Redis calls the channel of all rooms.
CHANNEL = "greensock:live_chat"
#: Seconds until a Redis that went away is asked again.
AGAIN = 1.0
LONGEST_TEXT, LONGEST_NAME = 1000, 32

PAGE = (Path(__file__).parent / "page.html").read_text()


class Member(NamedTuple):
    """Somebody who is here."""

    room: str
    name: str


class LiveChat(HTTPServer):
    """Rooms of WebSockets, beside the page; with ``redis``, the URL of one, those of other machines hear the same."""

    websocket_options = WebSocketOptions(max_message=8192)
    max_send_queue = 65536

    def __init__(self, listener: Any, redis: str | None = None, **options: Any) -> None:
        super().__init__(listener, **options)
        self.members: dict[WebSocket, Member] = {}
        self.rooms: dict[str, set[WebSocket]] = {}
        self._redis: Any = None
        self._listening: gevent.Greenlet[..., None] | None = None
        if redis is not None:
            from redis import Redis

            self._redis = Redis.from_url(redis, socket_connect_timeout=5, health_check_interval=10)

    def start(self) -> None:
        super().start()
        if self._redis is not None and self._listening is None:
            self._listening = gevent.spawn(self._listen)

    def abort(self) -> None:
        super().abort()
        listening, self._listening = self._listening, None
        if listening is not None:
            listening.kill()
            self._redis.close()

    # -- the page

    def handle_request(self, request: Request) -> Response:
        if request.path != "/":
            raise HTTPError(404)
        if request.method not in ("GET", "HEAD"):
            raise HTTPError(405, headers={"Allow": "GET, HEAD"})
        return Response(PAGE, content_type="text/html; charset=utf-8")

    # -- the WebSockets

    def websocket_open(self, websocket: WebSocket, request: Request) -> Response | None:
        room = re.fullmatch(r"/live/([\w\- ]{1,32})", request.path)
        if room is None:
            return Response("no such room\n", 404)
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != request.host:
            return Response("pages of other sites have no business here\n", 403)
        name = parse_qs(request.query).get("name", ["guest"])[0][:LONGEST_NAME]
        websocket.accept()  # from here on its end is told
        member = self.members[websocket] = Member(room.group(1), name)
        self.rooms.setdefault(member.room, set()).add(websocket)
        self.say(member, "joined")
        return None

    def websocket_message(self, websocket: WebSocket, message: Any) -> None:
        try:
            text = json.loads(message)["text"][:LONGEST_TEXT]
        except (ValueError, KeyError, TypeError):
            websocket.close(1003, 'a text {"text": "..."} expected')
            return
        self.say(self.members[websocket], "message", str(text))

    def websocket_close(self, websocket: WebSocket, code: int, reason: str) -> None:
        member = self.members.pop(websocket)
        self.rooms[member.room].discard(websocket)
        if not self.rooms[member.room]:
            del self.rooms[member.room]
        self.say(member, "left")

    def say(self, member: Member, kind: str, text: str = "") -> None:
        """Tell the room of somebody, on all machines; on this one alone while there is no Redis."""
        said = json.dumps({"room": member.room, "kind": kind, "name": member.name, "text": text})
        if self._redis is not None:
            try:
                self._redis.publish(CHANNEL, said)
                return  # it comes back from there, to all machines in the same order
            except Exception as error:  # an OSError, or a RedisError
                log.warning("Redis: %s", error)
        self.tell(member.room, said)

    def tell(self, room: str, said: str) -> None:
        """Send to all who are in a room here; who reads too slowly is dropped, and nobody waits."""
        self.broadcast_message(said, self.rooms.get(room, ()))

    # -- other machines

    def _listen(self) -> None:
        while True:
            try:
                with self._redis.pubsub(ignore_subscribe_messages=True) as heard:
                    heard.subscribe(CHANNEL)
                    for message in heard.listen():
                        said = message["data"].decode()
                        self.tell(json.loads(said)["room"], said)
            except Exception as error:
                log.warning("Redis: %s", error)
            gevent.sleep(AGAIN)


if __name__ == "__main__":
    run(LiveChat, __doc__, redis="the URL of a Redis that several machines share, redis://HOST:PORT")
