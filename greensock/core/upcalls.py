"""The upcalls of a server and the verdicts they return."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final, Generic

from greensock.core.connection import Connection
from greensock.core.transport import Transport
from greensock.errors import HandshakeFailed

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    ConnectionT = TypeVar("ConnectionT", bound=Connection, default=Connection)
else:
    from typing import TypeVar

    ConnectionT = TypeVar("ConnectionT", bound=Connection)

__all__ = ["DROP", "HALF_OPEN", "OK", "POSTPONE", "ConnectionT", "Upcalls", "Verdict"]


class Verdict(enum.Enum):
    """What an upcall says of its connection. None means OK."""

    #: Go on.
    OK = "ok"
    #: The message is not whole: give me these bytes again, in front of the next ones.
    POSTPONE = "postpone"
    #: Close the connection.
    DROP = "drop"
    #: Of ``connection_eof`` only: keep our half open, for there is more to send.
    HALF_OPEN = "half-open"


OK: Final = Verdict.OK
POSTPONE: Final = Verdict.POSTPONE
DROP: Final = Verdict.DROP
HALF_OPEN: Final = Verdict.HALF_OPEN


class Upcalls(Generic[ConnectionT]):
    """What a server calls; override what you need.

    An upcall may block: on a downcall of its connection or of any other, or on any cooperative library. Only its own
    connection waits for it.
    """

    def transport_for(self, conn: ConnectionT, fd: int) -> Transport | None:
        """Return what a new connection reads from and writes to instead of its descriptor; None: the descriptor itself.

        Called before ``connection_new``, and must not block. The descriptor never blocks and stays the connection's.
        """

    def handshake_failed(self, conn: ConnectionT, exc: HandshakeFailed) -> None:
        """No TLS was agreed on with a connection, for which no other upcall is made; ``exc.reason`` says why."""

    def connection_new(self, conn: ConnectionT) -> Verdict | None:
        """A connection came (seed hook ``connection_new``). DROP closes it."""

    def connection_recv(self, conn: ConnectionT, data: bytes) -> Verdict | None:
        """Data came, at most ``recv_size`` bytes; with a framer, one whole message (seed hook ``connection_recv``).

        POSTPONE brings ``data`` back in front of the next data.
        """

    def connection_recv_finish(self, conn: ConnectionT) -> Verdict | None:
        """That was the last data of this turn: the time to send what was gathered."""

    def connection_eof(self, conn: ConnectionT) -> Verdict | None:
        """The peer sent FIN: nothing more will come, and the connection is closed. HALF_OPEN keeps our half open."""

    def connection_error(self, conn: ConnectionT, exc: BaseException) -> None:
        """The connection broke, a limit was crossed, or an upcall raised ``exc``. ``connection_drop`` follows."""

    def connection_drop(self, conn: ConnectionT) -> None:
        """The connection has ended (seed hook ``connection_drop``); ``conn.drop_reason`` says why."""

    def handle(self, conn: ConnectionT) -> object:
        """Serve one connection in the blocking style, in place of ``connection_recv`` and ``connection_eof``.

        The connection is closed when it returns. Overriding it chooses this style.
        """
