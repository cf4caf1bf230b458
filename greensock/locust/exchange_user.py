"""Users whose requests are exchanges: something is sent, something comes back, and one ``with`` block checks it."""

from __future__ import annotations

from time import perf_counter
from types import TracebackType
from typing import Any, ClassVar

import gevent
from locust.env import Environment
from locust.exception import (
    CatchResponseError,
    InterruptTaskSet,
    RescheduleTask,
    RescheduleTaskImmediately,
    StopTest,
    StopUser,
)

from greensock import GreensockError
from greensock.locust.paced_user import PacedUser

__all__ = ["FAILURES", "ExchangeUser", "MeasuredExchange"]

#: What is a failure to connect, to send or to receive, and no fault of the locustfile's.
FAILURES = (GreensockError, OSError, EOFError, gevent.Timeout)
#: What is raised to go on elsewhere, such as ``self.interrupt()``, and is no failure.
TURNS = (InterruptTaskSet, RescheduleTask, RescheduleTaskImmediately, StopTest, StopUser)


class MeasuredExchange:
    """One request, as Locust counts it: from when it is begun, or was due, to the last message that it received.

    Used with ``with``. What is raised in the block, a failed ``assert`` say, is the failure that is counted, and goes
    no further. If the connection or a time limit failed, or a message was not what it should be, the connection is
    closed behind it, for nobody knows to what its next message would belong; the next exchange connects anew.
    """

    __slots__ = (
        "_began",
        "_context",
        "_data",
        "_ended",
        "_failure",
        "_replies",
        "_timeout",
        "_user",
        "length",
        "messages",
        "name",
    )

    def __init__(
        self, user: ExchangeUser, name: str, data: Any, replies: int, timeout: float | None, context: dict[str, Any]
    ) -> None:
        #: What Locust counts it by; may be changed within the block.
        self.name = name
        #: What came.
        self.messages: list[Any] = []
        #: Bytes that came, as Locust counts them.
        self.length = 0
        self._user = user
        self._data = data
        self._replies = replies
        self._timeout = timeout
        self._context = context
        self._began = 0.0
        self._ended: float | None = None
        self._failure: Exception | None = None

    @property
    def message(self) -> Any:
        """The last message that came; None if none did."""
        return self.messages[-1] if self.messages else None

    def send(self, message: Any) -> None:
        """Send a message."""
        self._user.send_message(message, self._timeout)

    def receive(self, timeout: float | None = None) -> Any:
        """Return the next message; it is waited for, ``timeout`` seconds at the most, or ``network_timeout``."""
        message = self._user.receive_message(self._timeout if timeout is None else timeout, self._data)
        self._ended = perf_counter()
        self.length += len(message)
        self.messages.append(message)
        return message

    def failure(self, why: str | Exception) -> None:
        """Have it count as a failure; by few words, as failures are counted by what they say."""
        self._failure = why if isinstance(why, Exception) else CatchResponseError(why)

    def __enter__(self) -> MeasuredExchange:
        user = self._user
        self._began = user.begin_request()
        user.stay_connected()
        if user.rate is None:
            self._began = perf_counter()  # connecting was a request of its own
        try:
            if self._data is not None:
                self.send(self._data)
            for _ in range(self._replies):
                self.receive()
        except FAILURES as error:
            self._over(error)
            raise RescheduleTask from None  # the task ends here, and Locust goes on with the next one
        except BaseException:
            user.disconnect()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is not None and not isinstance(error, Exception):
            if not isinstance(error, gevent.Timeout):
                self._user.disconnect()  # the user was stopped within it
                return False
        if isinstance(error, TURNS):
            self._over(self._failure)
            return False
        self._over(error if error is not None else self._failure)
        return True

    def _over(self, failure: BaseException | None) -> None:
        if failure is not None:
            self._user.disconnect()
        if isinstance(failure, gevent.Timeout):
            failure = TimeoutError(str(failure))
        ended = perf_counter() if self._ended is None or isinstance(failure, OSError | EOFError) else self._ended
        self._user.report_request(
            self._user.request_type, self.name, self._began, self.length, failure, ended, self._context
        )


class ExchangeUser(PacedUser):
    """A user who exchanges messages with a server. Use one of its kinds, or make one by its five methods.

        with self.exchange("GET", b"GET key") as reply:
            assert reply.message == b"VALUE", "GET: another value"

    is one request, which is sent, answered by one message, timed, named and checked. The user connects when it is
    first needed, and again behind a failure; that is a request, too, called ``connect``. A server that is down makes
    them fail, one for each task, and the task ends there; no traceback is logged.
    """

    abstract = True

    #: What Locust calls the requests.
    request_type: ClassVar[str] = "message"
    #: Seconds that a message may take to be sent or to come.
    network_timeout: float = 60.0
    #: Seconds that connecting may take.
    connection_timeout: float = 60.0

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        if self.host is None:
            raise StopTest("no host: the attribute host of the user, or --host on the command line, expected")
        #: Whether there is a connection.
        self.is_connected = False

    def exchange(
        self,
        name: str,
        message: Any = None,
        *,
        replies: int | None = None,
        timeout: float | None = None,
        context: dict[str, Any] | None = None,
    ) -> MeasuredExchange:
        """Return what a ``with`` block measures: the message goes out and so many come back before the block begins.

        Left out, ``replies`` is 1 if there is a message, else none; the block may send and receive more. ``timeout``
        (seconds, of each step) takes the place of ``network_timeout``.
        """
        count = replies if replies is not None else 0 if message is None else 1
        seconds = self.network_timeout if timeout is None else timeout
        return MeasuredExchange(self, name, message, count, seconds, context or {})

    def stay_connected(self) -> None:
        """Connect, if there is no connection, and report that.

        Raises:
            RescheduleTask: it was a failure: Locust goes on with the next task.
        """
        if self.is_connected:
            return
        began, failure = perf_counter(), None
        try:
            self.open_link()
            self.is_connected = True
            self.on_connect()
        except FAILURES as error:
            failure = TimeoutError(str(error)) if isinstance(error, gevent.Timeout) else error
            self.disconnect()
        self.report_request(self.request_type, "connect", began, 0, failure)
        if failure is not None:
            raise RescheduleTask

    def disconnect(self) -> None:
        """Close the connection, if there is one."""
        self.is_connected = False
        self.close_link()

    def on_connect(self) -> None:
        """Be called when the user has connected: for what a protocol begins with. Its time is that of ``connect``."""

    def on_stop(self) -> None:
        """Disconnect; call it at the end of your own."""
        self.disconnect()

    # -- for its kinds to say

    def open_link(self) -> None:
        """Connect to ``host``."""
        raise NotImplementedError

    def close_link(self) -> None:
        """Close what ``open_link`` opened, if it is open. Must not block or raise."""
        raise NotImplementedError

    def send_message(self, message: Any, timeout: float | None) -> None:
        """Send a message."""
        raise NotImplementedError

    def receive_message(self, timeout: float | None, asked: Any) -> Any:
        """Return the next message; ``asked`` is what the exchange began with. Raises ``EOFError`` at the end."""
        raise NotImplementedError
