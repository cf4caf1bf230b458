"""What can be broken and no test can notice, and why: ``mutants.py`` leaves it out.

Either the program does the same all the same, or it only takes a little longer.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["KNOWN", "Known"]


class Known(NamedTuple):
    """A mutant, by where it is and what becomes what; ``at`` is which one, if there are several such lines."""

    module: str
    where: str
    line: str
    change: str
    why: str
    at: int | None = None


_SAME_TIME = "whether two readings of the clock are the same to the last bit is nobody's business"
_OF_BYTES = "self.bytes_received % BYTES_PER_LOOK < size  ->  (self.bytes_received % BYTES_PER_LOOK) <= (size)"
_NOT_ACTIVE = (
    "not self._active and not self._scheduled  ->  ((not self._active) or (not self._scheduled))",
    "slower: one more pass, in which there is nothing to be done",
)

KNOWN = (
    Known(
        "turns",
        "Turns._full_turn",
        "return False",
        "False  ->  True",
        "whether there is more to be read is asked of an open connection only",
    ),
    Known(
        "turns",
        "Turns._end_rest",
        "self._poller.queue(conn)",
        "self._poller.queue(conn)  ->  pass",
        "the event of what has come, which is still on its way then, brings the same turn",
    ),
    Known(
        "receiving",
        "Receiving._look_now",
        "sock.recv(1, _socket.MSG_PEEK | _socket.MSG_DONTWAIT)",
        "1  ->  1 + 1",
        "it is asked whether something is there, and not what",
    ),
    Known(
        "receiving",
        "Receiving._recv",
        "elif count and self.bytes_received % BYTES_PER_LOOK < size:",
        _OF_BYTES,
        "slower: one look at the clock more",
    ),
    Known(
        "receiving",
        "Receiving._took",
        "elif count and self.bytes_received % BYTES_PER_LOOK < size:",
        _OF_BYTES,
        "slower: one look at the clock more",
    ),
    Known(
        "receiving",
        "Receiving.read_until",
        "if end >= 0 or searched > max_bytes:",
        "0  ->  0 + 1",
        "an end within the loop is behind max_bytes, and so never at 0",
    ),
    Known(
        "receiving",
        "Receiving._await_input",
        "elif deadline <= now and timeout > 0:",
        "deadline <= now  ->  (deadline) < (now)",
        _SAME_TIME,
    ),
    Known(
        "receiving",
        "Receiving._await_input",
        'raise OperationTimeout(f"not done in {timeout} s", self, "recv", timeout)',
        'raise OperationTimeout(f"not done in {timeout} s", self, "recv", timeout)  ->  pass',
        "slower: the wait that begins then comes due at once, and raises the same",
    ),
    Known(
        "receiving",
        "Receiving._await_input",
        "raise self._closed_error()",
        "raise self._closed_error()  ->  pass",
        "the caller's loop comes back, and the first such line raises the same",
        1,
    ),
    Known(
        "sending",
        "Sending._limit",
        "if entry.deadline < self._armed:",
        "entry.deadline < self._armed  ->  (entry.deadline) <= (self._armed)",
        "slower: one more entry of the heap, for the same time",
    ),
    Known(
        "sending",
        "Sending.send_nowait",
        "self._push(entry)",
        "self._push(entry)  ->  pass",
        "slower: the flush of the same call sends it, after it was copied",
    ),
    Known(
        "sending",
        "Sending._push",
        "self.bytes_sent += entry.push(self._fd, self._transport)",
        "self.bytes_sent += entry.push(self._fd, self._transport)  ->  pass",
        "slower: as nothing is sent here, the flush of the same call sends it, after it was copied",
    ),
    Known(
        "send_queue",
        "Passage.pull",
        "raise",
        "raise  ->  pass",
        "slower: the copy that is tried then finds nothing there either, and raises the same",
        0,
    ),
    Known(
        "lifecycle",
        "Lifecycle.__init__",
        "self._idle_since = 0.0",
        "0.0  ->  0.0 + 1",
        "the first sweep sets it, as _idle_moved says that it has not been looked at",
    ),
    Known(
        "lifecycle",
        "Lifecycle.__init__",
        "self._idle_since = 0.0",
        "self._idle_since = 0.0  ->  pass",
        "as above",
    ),
    Known(
        "poller",
        "Endpoint.__init__",
        "self._thorough = False",
        "False  ->  True",
        "a connection sets its own, and of what is none nobody asks",
    ),
    Known(
        "poller",
        "Poller.__init__",
        "self.until = 0.0",
        "0.0  ->  0.0 + 1",
        "both are past: no machine runs this in its first second",
    ),
    Known("poller", "Poller._go_on_later", "if not self._active and not self._scheduled:", *_NOT_ACTIVE),
    Known("poller", "Poller.schedule", "if not self._active and not self._scheduled:", *_NOT_ACTIVE),
    Known(
        "poller",
        "Poller._tell",
        "if events & EVENT_HANGUP:",
        "events & EVENT_HANGUP  ->  ((events) | (EVENT_HANGUP))",
        "slower: who is told of a hang-up asks the kernel whether it is one",
    ),
    Known(
        "poller",
        "Poller._run_put_off",
        "if now > end:",
        "now > end  ->  (now) >= (end)",
        _SAME_TIME,
    ),
    Known(
        "relay",
        "Relay.__init__",
        "self._started = 0.0",
        "0.0  ->  0.0 + 1",
        "it is set with the record, and asked for by who ends that",
    ),
    Known(
        "relay",
        "Relay._failure_of",
        "failure.blames_server = self.exchange.waited >= (self.deadlines.total or 0.0) / 2",
        "0.0  ->  0.0 + 1",
        "what took too long in all has such a limit",
    ),
)
