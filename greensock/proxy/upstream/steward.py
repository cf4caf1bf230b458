"""What one worker of a proxy does for the servers behind it, beside requests: it tells the others, and takes over.

Four times a second there is a *beat*. It shows that this worker lives; tells how many requests and connections it has;
takes over what is new in the table of all workers (one number says whether anything is); and tells its own news:

- an ejection, or its end, that its own requests brought about. The others stand as this one does within two beats, so a
  server that fails is out for all after the ``max_fails`` of one worker; until then each of the others may have had one
  less than that. What is taken over is not counted as a further failure.
- if it leads (see ``shared_servers``): what checks found, and where names lead. Only the leader checks and looks up.

News that can't be written at once, as another worker writes, waits for the next beat. The path of a request sees
nothing of all this but what stands at the servers themselves.

What is set at run time (``set_state``, ``add``, ``remove``) goes through the same table; it is kept when a
configuration is read anew, goes before what that says (but how a server is that both have, the configuration says), and
is lost when the proxy is restarted.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from functools import partial
from time import monotonic, time
from typing import Any

import gevent

from greensock.proxy.options import ServerOptions
from greensock.proxy.upstream.health import Standing
from greensock.proxy.upstream.name_lookup import Found, NameLookup, prepare
from greensock.proxy.upstream.server_specs import given_servers, is_looked_up, specs_of
from greensock.proxy.upstream.servers import ADMIN_STATES, Upstream, UpstreamServer
from greensock.proxy.upstream.shared_servers import SharedServers, WorkersView, key_of_server, rules_of
from greensock.proxy.upstream.shared_table import TableFull
from greensock.shared_pages import SharedPages

__all__ = ["ServerIsThere", "Steward"]

log = logging.getLogger("greensock.upstream")

#: Seconds between two beats.
BEAT = 0.25
#: Characters of a reason that others are told.
MAX_WHY = 200
#: Servers that may be added at run time, in all upstreams together.
MOST_ADDED = 1024

Document = dict[str, Any]
#: Changes the table; False: there was nothing to be changed.
Change = Callable[[Document], object]


class ServerIsThere(ValueError):
    """A server that was to be added is there already: nothing has changed."""


class Steward:
    """Keeps the servers of one worker as those of all. ``on_change`` is called when servers came or went, or when this
    worker begins or ceases to lead."""

    def __init__(self, upstreams: Mapping[str, Upstream], on_change: Callable[[], object]) -> None:
        self._upstreams = upstreams
        self._on_change = on_change
        #: Whether this worker checks the servers, and looks their names up.
        self.leads = False
        self._view: WorkersView | None = None
        self._greenlet: gevent.Greenlet[..., None] | None = None
        self._generation = -1
        self._document: Document = {}
        self._turns: dict[tuple[str, str], int] = {}  # which news of a server were taken over, by table and key
        self._lookups: dict[str, NameLookup] = {}
        self._found: dict[str, list[Found]] = {}  # what this worker found, and the others don't know
        self._is_full = False  # whether it was logged that the table is
        self._is_tidy = False

    # -- starting, stopping

    @property
    def view(self) -> WorkersView:
        """What it sees of all workers; of its own process alone if it never joined others."""
        if self._view is None:
            self.join(SharedServers(SharedPages(1)), 0)
        assert self._view is not None
        return self._view

    def join(self, shared: SharedServers, slot: int) -> None:
        """Be one of several workers, that one with this row of the pages; before it is started."""
        self._view = WorkersView(shared, slot)

    def follow(self, old: Steward) -> None:
        """Take the place of another one in the same process, which has stopped."""
        if old._view is not None:
            self.join(old._view.shared, old._view.slot)

    def start(self) -> None:
        """Begin to beat: with the first one, here and now, all stands as in the other workers."""
        if self._greenlet is None:
            if any(is_looked_up(each) for group in self._upstreams.values() for each in group.options.servers):
                prepare()
            self.beat(monotonic())
            self._greenlet = gevent.spawn(self._run)

    def stop(self) -> None:
        """Tell what is to be told, and beat no more."""
        greenlet, self._greenlet = self._greenlet, None
        self.leads = False
        self._arrange_lookups()
        if greenlet is None:
            return
        if greenlet is not gevent.getcurrent():
            greenlet.kill()
        self._tell_news(self._news())
        for upstream in self._upstreams.values():
            upstream.withdraw()
        self.view.end()
        self._generation = -1

    def _run(self) -> None:
        while True:
            gevent.sleep(BEAT)
            try:
                self.beat(monotonic())
            except Exception:
                log.exception("what other workers tell of the servers can't be taken over")

    # -- the beat

    def beat(self, now: float) -> None:
        """Show life, take over what is new, and tell what is."""
        view = self.view
        view.beat(now)
        has_changed = view.table.generation != self._generation and self._take_over(now)
        leads = view.leads(now)
        if leads != self.leads:
            self.leads, self._is_tidy, has_changed = leads, False, True
        if has_changed:
            self._arrange_lookups()
            self._on_change()
        if self._tell_news(self._news()):
            self._take_over(now)  # places, say
        for upstream in self._upstreams.values():
            upstream.tell()

    def _take_over(self, now: float) -> bool:
        """Stand as the table says; return whether servers came or went."""
        self._generation, self._document = self.view.table.read()
        document, has_changed = self._document, False
        self._turns = {each: turn for each, turn in self._turns.items() if each[1] in document.get(each[0], {})}
        for name, upstream in self._upstreams.items():
            if upstream.arrange(specs_of(upstream.options, document)):
                has_changed = True
                self._is_tidy = False
            place = document.get("places", {}).get(key_of_server(name, ""))
            if place is not None:
                upstream.attach(self.view, place[0])
            for server in upstream.all:
                self._take_over_server(document, upstream, server, now)
        return has_changed

    def _take_over_server(self, document: Document, upstream: Upstream, server: UpstreamServer, now: float) -> None:
        key = key_of_server(upstream.name, server.name)
        place = document.get("places", {}).get(key)
        if place is not None:
            server.attach(self.view, place[0], place[1:])
        wanted = document.get("admin", {})
        state, since = wanted.get(key) or wanted.get(key_of_server(upstream.name, server.spec.given)) or ("ready", 0.0)
        upstream.set_admin(server, state, since)
        rules, health = rules_of(server.health.options), server.health
        news = document.get("checks", {}).get(key)
        if news is not None and self._is_news("checks", key, news[0]) and news[1] == rules:
            if health.take_check(now, news[2]):
                server.why, server.since = news[4], news[3]
                if not news[2]:
                    server.rose()
        news = document.get("ejections", {}).get(key)
        if news is None or health.changes != server.told_changes:
            return  # its own are newer, and are told with this beat
        if self._is_news("ejections", key, news[0]) and news[1] == rules:
            _, _, until, seconds, penalty, since, why = news
            if until is not None:
                health.take_ejection(until, seconds, penalty)
                server.why, server.since = why, since
            elif health.take_rise(now):
                server.why, server.since = "", since
                server.rose()

    def _is_news(self, table: str, key: str, turn: int) -> bool:
        """Return whether that was not taken over before; it is now."""
        if self._turns.get((table, key)) == turn:
            return False
        self._turns[table, key] = turn
        return True

    # -- news of its own

    def _servers(self) -> list[tuple[str, UpstreamServer]]:
        return [(key_of_server(name, each.name), each) for name, group in self._upstreams.items() for each in group.all]

    def _news(self) -> list[Change]:
        """Return what the others are to know."""
        news: list[Change] = []
        servers = self._servers()
        places = self._document.get("places", {})
        keys = [key for key, _ in servers] + [key_of_server(name, "") for name in self._upstreams]
        if self.leads and not self._is_tidy:
            news.append(partial(self._tidy, set(keys)))
        if any(key not in places for key in keys) and not self._is_full:
            news.append(partial(self._give_places, keys))
        for key, server in servers:
            if server.health.changes != server.told_changes:
                news.append(partial(self._tell_ejection, key, server))
            if self.leads and server.health.options.path is not None:
                checked = server.health.statistics()
                before = self._document.get("checks", {}).get(key)
                is_down = checked.standing is Standing.DOWN
                is_known = before is not None and before[1] == rules_of(server.health.options)
                if (checked.checks_passed or checked.checks_failed) and not (is_known and before[2] == is_down):
                    news.append(partial(self._tell_check, key, server, is_down))
        if self._found:
            news.append(partial(self._tell_found, dict(self._found)))
        return news

    def _tell_news(self, news: list[Change]) -> bool:
        """Write it into the table, if that can be done now; return whether it was."""
        if not news:
            return False

        def change(document: Document) -> bool:
            has_changed = False
            for each in news:
                has_changed = each(document) is not False or has_changed
            return has_changed

        try:
            done = self.view.table.update(change)
        except TableFull as error:
            if not self._is_full:
                self._is_full = True
                log.error("what is new of the servers stays unknown to other workers: the table is full: %s", error)
            return False
        return done

    def _give_places(self, keys: list[str], document: Document) -> bool:
        has_changed = self.view.give_places(document, keys)
        left = [key for key in keys if key not in document["places"]]
        if left and not self._is_full:
            self._is_full = True
            log.error("%d servers are counted for each worker alone: %s and others find no place", len(left), left[0])
        return has_changed

    def _tell_ejection(self, key: str, server: UpstreamServer, document: Document) -> None:
        changes = server.health.changes
        until, seconds, penalty = server.health.sentence()
        turn = self._next_turn("ejections", key, document)
        told = [turn, rules_of(server.health.options), until, seconds, penalty, server.since, server.why[:MAX_WHY]]
        document.setdefault("ejections", {})[key] = told
        server.told_changes = changes

    def _tell_check(self, key: str, server: UpstreamServer, is_down: bool, document: Document) -> None:
        turn = self._next_turn("checks", key, document)
        told = [turn, rules_of(server.health.options), is_down, server.since or time(), server.why[:MAX_WHY]]
        document.setdefault("checks", {})[key] = told

    def _next_turn(self, table: str, key: str, document: Document) -> int:
        # One count for all: a server that comes back is not told by a turn that others have seen of it before.
        turn: int = document.get("turn", 0) + 1
        document["turn"] = turn
        self._turns[table, key] = turn  # nothing new to this worker
        return turn

    def _tell_found(self, found: dict[str, list[Found]], document: Document) -> None:
        document.setdefault("found", {}).update(found)
        for key, places in found.items():
            if self._found.get(key) is places:
                del self._found[key]

    def _tidy(self, keys: set[str], document: Document) -> bool:
        """Take out of the table what concerns servers that are no more. In the worker that leads."""
        self._is_tidy = True
        has_changed = False
        given = {
            key_of_server(name, each)
            for name, upstream in self._upstreams.items()
            for each in given_servers(upstream.options, document)
        }
        for table, wanted in (
            *((each, keys) for each in ("places", "checks", "ejections")),
            ("admin", keys | given),
            ("found", given),
        ):
            there = document.get(table, {})
            for key in [each for each in there if each not in wanted]:
                del there[key]
                has_changed = True
        for table in ("added", "removed"):
            there = document.get(table, {})
            for name in [each for each in there if each not in self._upstreams]:
                del there[name]
                has_changed = True
        return has_changed

    # -- names

    def _arrange_lookups(self) -> None:
        """Look up the names of the servers that there are, and no others; nothing if another worker does it."""
        wanted: dict[str, tuple[Upstream, ServerOptions]] = {}
        if self.leads:
            for name, upstream in self._upstreams.items():
                if upstream.options.resolve_every is not None:
                    for each, options in given_servers(upstream.options, self._document).items():
                        if is_looked_up(options):
                            wanted[key_of_server(name, each)] = upstream, options
        for key, lookup in list(self._lookups.items()):
            if key not in wanted or wanted[key][1] != lookup.options:
                del self._lookups[key]
                lookup.stop()
        for key, (upstream, options) in wanted.items():
            if key not in self._lookups:
                places = self._document.get("found", {}).get(key)
                known = None if places is None else [(host, port, weight, last) for host, port, weight, last in places]
                every = upstream.options.resolve_every
                assert every is not None
                self._lookups[key] = NameLookup(
                    f"{upstream.name}: {options.origin}",
                    *(options, every, upstream.options.name_servers),
                    on_found=partial(self._found.__setitem__, key),
                    known=known,
                )
                self._lookups[key].start()

    # -- what operators want

    def set_state(self, upstream: str, server: str, state: str) -> None:
        """Have a server stand so, one of :data:`ADMIN_STATES`, in all workers; see ``Gateway.set_server``."""
        if state not in ADMIN_STATES:
            raise ValueError(f"state={state!r}: {', '.join(map(repr, ADMIN_STATES))} expected")
        group = self._group(upstream)
        self._look()
        names = {each.name for each in group.all} | given_servers(group.options, self._document).keys()
        if server not in names:
            raise LookupError(f"server={server!r}: one of {', '.join(sorted(names))} expected")
        key = key_of_server(upstream, server)
        # Its addresses, if it is a name; or the name, if it is an address: what is said last holds.
        below = [key_of_server(upstream, each.name) for each in group.all if each.spec.given == server != each.name]
        above = {key_of_server(upstream, each.spec.given) for each in group.all if each.name == server} - {key}

        def change(document: Document) -> bool:
            admin = document.setdefault("admin", {})
            gone = [admin.pop(each, None) for each in below]
            of_name = next((admin[each][0] for each in above if each in admin), "ready")
            if admin.get(key, [of_name])[0] == state:
                return any(gone)
            if state == of_name:
                del admin[key]
            else:
                admin[key] = [state, time()]
            return True

        self._set(change)
        log.warning("%s: %s: set to %s by an operator", upstream, server, state)

    def add(self, upstream: str, options: ServerOptions) -> None:
        """Have a further server, in all workers; see ``Gateway.add_server``."""
        group, name = self._group(upstream), str(options.origin)

        def change(document: Document) -> None:
            if name in given_servers(group.options, document):
                raise ServerIsThere(f"server={name!r}: each server once expected")
            if sum(map(len, document.get("added", {}).values())) >= MOST_ADDED:
                raise TableFull(f"{MOST_ADDED} servers were added at run time, and not removed: no more expected")
            document.setdefault("added", {}).setdefault(upstream, {})[name] = dataclasses.asdict(options)

        self._set(change)
        log.warning("%s: %s is added", upstream, name)

    def remove(self, upstream: str, server: str) -> None:
        """Have a server no more, in all workers; see ``Gateway.remove_server``."""
        group = self._group(upstream)

        def change(document: Document) -> None:
            names = given_servers(group.options, document)
            if server not in names:
                raise LookupError(f"server={server!r}: one of {', '.join(sorted(names)) or 'none'} expected")
            document.get("added", {}).get(upstream, {}).pop(server, None)
            if any(str(each.origin) == server for each in group.options.servers):
                document.setdefault("removed", {}).setdefault(upstream, {})[server] = True

        self._set(change)
        log.warning("%s: %s is removed", upstream, server)

    def _group(self, upstream: str) -> Upstream:
        if upstream not in self._upstreams:
            raise LookupError(f"upstream={upstream!r}: one of {', '.join(sorted(self._upstreams))} expected")
        return self._upstreams[upstream]

    def _set(self, change: Change) -> None:
        if not self.view.table.update(change, pause=gevent.sleep):
            raise TimeoutError("other workers write to the table of servers all the time, or one hangs within that")
        self._look()

    def _look(self) -> None:
        """Take over what is in the table, now."""
        if self.view.table.generation != self._generation and self._take_over(monotonic()):
            self._arrange_lookups()
            if self._greenlet is not None:
                self._on_change()
