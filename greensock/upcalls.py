"""The upcalls of a server and the verdicts they return."""

from __future__ import annotations

import enum
from typing import Final

from greensock.connection import Connection

__all__ = ["DROP", "OK", "POSTPONE", "Upcalls", "Verdict"]


class Verdict(enum.Enum):
    """What an upcall says of its connection. None means OK (but see ``connection_eof``)."""

    #: Go on.
    OK = "ok"
    #: The message is not whole: give me these bytes again, in front of the next ones.
    POSTPONE = "postpone"
    #: Close the connection.
    DROP = "drop"


OK: Final = Verdict.OK
POSTPONE: Final = Verdict.POSTPONE
DROP: Final = Verdict.DROP


class Upcalls:
    """What a server calls; override what you need.

    An upcall may block: on a downcall of its connection or of any other, or on any cooperative library. Only its own
    connection waits for it.
    """

    def connection_new(self, conn: Connection) -> Verdict | None:
        """A connection came (seed hook ``connection_new``). DROP closes it."""

    def connection_recv(self, conn: Connection, data: bytes) -> Verdict | None:
        """Data came, at most ``recv_size`` bytes; with a framer, one whole message (seed hook ``connection_recv``).

        POSTPONE brings ``data`` back in front of the next data.
        """

    def connection_recv_finish(self, conn: Connection) -> Verdict | None:
        """That was the last data of this turn: the time to send what was gathered."""

    def connection_eof(self, conn: Connection) -> Verdict | None:
        """The peer sent FIN: nothing more will come. OK keeps our half open; anything else, None too, closes."""

    def connection_error(self, conn: Connection, exc: BaseException) -> None:
        """The connection broke, a limit was crossed, or an upcall raised ``exc``. ``connection_drop`` follows."""

    def connection_drop(self, conn: Connection) -> None:
        """The connection has ended (seed hook ``connection_drop``); ``conn.drop_reason`` says why."""

    def handle(self, conn: Connection) -> object:
        """Serve one connection in the blocking style, in place of ``connection_recv`` and ``connection_eof``.

        The connection is closed when it returns. Overriding it chooses this style.
        """
