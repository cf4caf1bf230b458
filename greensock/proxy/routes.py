"""Which route a request takes. Pure.

Of the routes that fit a request the one with the most exact host is taken: a whole name before ``*.suffix``, a longer
suffix before a shorter one, any of them before a route without hosts. Among these the longest path goes first, of the
same path one with a pattern, and then the one that was named first. A route whose methods, fields, cookies or query
don't fit is passed over, for a less exact one, too.

Paths are compared as a server behind may read them: percent-decoded once, ``.`` and ``..`` resolved, slashes that
follow each other as one, without the query, segment by segment. The request itself keeps its target as it came. So a
rule for ``/admin`` holds for ``//%61dmin/``, too. What servers read in different ways is refused (``BadPath``) where
paths decide at all, that is, if any route that fits the host has a path other than ``/``:

- ``%00``, a backslash as it is or as ``%5C``, ``%`` without two hexadecimal digits;
- ``..`` above the root, and ``..`` in a path that has an empty segment, or with a ``;`` behind it;
- ``%2F``, unless the path leads to the same route whether that is a slash or not, and the route allows it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from urllib.parse import quote_from_bytes, unquote_to_bytes

from greensock import Rule
from greensock.http.server.cookies import parse_cookies
from greensock.http.server.query_fields import QueryFields
from greensock.http.wire.headers import Headers
from greensock.http.wire.syntax import is_token
from greensock.http.wire.target import path_to_ask_for
from greensock.proxy.guard import GuardOptions
from greensock.proxy.options import BasicAuth, Buffering, ForwardAuth, ProxyTimeouts
from greensock.proxy.path_patterns import PathPattern
from greensock.proxy.rules import NO_EDITS, FieldEdits, Redirect, StaticAnswer, Template, group_of

__all__ = ["BadPath", "Route", "Routes", "plain_target"]

#: How many pairs of authority and path are remembered, and how long they may be together, in bytes.
CACHE_SIZE = 1024
MAX_CACHED = 512
#: A name in the DNS is no longer (RFC 1035 section 2.3.4), with a port behind it.
MAX_AUTHORITY = 262

_host_pattern = re.compile(r"(?:\*\.)?[a-z0-9_\-]+(?:\.[a-z0-9_\-]+)*|\[[0-9a-f:.]+\]").fullmatch
_bad_escape = re.compile(rb"%(?![0-9A-Fa-f]{2})").search
_encoded_slash = re.compile(rb"%2[Ff]").search
_every_encoded_slash = re.compile(rb"%2[Ff]").sub
_not_plain = re.compile(rb"[%\\]|//|/\.").search
_sound_rewrite = re.compile(r"/(?!/)[!$-\[\]-~]*").fullmatch


class BadPath(ValueError):
    """A path that may not be routed, as servers read it in different ways: answer ``status`` and close.

    ``reason`` is a token for the log.
    """

    status = 400

    def __init__(self, reason: str) -> None:
        super().__init__(f"the path can be read in more than one way: {reason}")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Route:
    """Which requests, and what becomes of them.

    Raises:
        ValueError: a value that is not allowed.
    """

    #: The upstream's name, or the answer.
    action: str | StaticAnswer | Redirect
    #: What the log calls it.
    name: str = ""
    #: ``example.org``, or ``*.example.org`` for all names below it; none: every host. Ports don't matter.
    hosts: tuple[str, ...] = ()
    #: Its own and everything below it: ``/api`` is ``/api``, ``/api/`` and ``/api/x``, and not ``/apix``.
    path: str = "/"
    #: Whether nothing below the path is meant.
    exact: bool = False
    #: None: all.
    methods: frozenset[str] | None = None
    #: Fields that a request must have, and their whole value; None: any value.
    headers: Mapping[str, str | None] = field(default_factory=dict, hash=False)
    #: Cookies that a request must have, and their whole value; None: any value. Of several of a name the first counts.
    cookies: Mapping[str, str | None] = field(default_factory=dict, hash=False)
    #: Fields of the query, likewise, decoded.
    query: Mapping[str, str | None] = field(default_factory=dict, hash=False)
    #: A regular expression that the whole path must match, too; None: any. It is RE2's, and needs ``google-re2``. It
    #: sees the path as it is compared: decoded, without dots and empty segments. Its named groups are ``{match.NAME}``
    #: in ``rewrite``, in a redirect and in edits, percent-encoded.
    pattern: str | None = None
    #: Whether ``%2F`` may be in the path.
    encoded_slash: bool = False
    #: Whether the upstream gets the target without the path of the route. It is told that by X-Forwarded-Prefix.
    strip_prefix: bool = False
    #: What the upstream is asked for in place of the path: a path, in which ``{match.NAME}`` are groups of the pattern.
    #: The query stays, unless it has one itself.
    rewrite: str | None = None
    #: Whether Location, Content-Location, Refresh and the Path and Domain of Set-Cookie are put right, of a server that
    #: does not know where it stands: see ``prefixes``. None: where ``strip_prefix`` is set, or its URL has a path.
    rewrite_answers: bool | None = None
    #: What is changed in the fields of a request.
    request_fields: FieldEdits = NO_EDITS
    #: What is changed in the fields of an upstream's answer.
    response_fields: FieldEdits = NO_EDITS
    #: In the place of the proxy's; None: those.
    timeouts: ProxyTimeouts | None = None
    #: In the place of the upstream's; None: those.
    retries: int | None = None
    #: What a client may do on this route, besides what it may do in all; None: whatever that is. ``connection_rate``,
    #: ``max_connections`` and ``hosts`` have no effect here.
    guard: GuardOptions | None = None
    #: How much of an answer is held for a client that is behind; None: as the proxy says.
    buffer: Buffering | None = None
    #: A server that is asked first whether a request may pass.
    auth: ForwardAuth | None = None
    #: Who may ask.
    basic_auth: BasicAuth | None = None
    #: Whether nothing is asked or changed on the way, so that the short way of ordinary requests may be gone.
    is_ordinary: bool = field(init=False, compare=False, repr=False)
    #: Whether who asks is looked at.
    is_guarded: bool = field(init=False, compare=False, repr=False)
    #: Whether the fields of a request are changed.
    edits_requests: bool = field(init=False, compare=False, repr=False)
    #: The pattern, ready to be compared.
    matcher: PathPattern | None = field(init=False, compare=False, repr=False)
    #: The path that is taken off, as it is written in a URL, without a slash at its end; empty: none is.
    prefix: bytes = field(init=False, compare=False, repr=False)
    #: Whether answers are put right wherever its servers are.
    puts_right: bool = field(init=False, compare=False, repr=False)
    _rewrite: Template | None = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        for each in fields(self):
            if each.init:
                _RULES[each.name].check(each.name, getattr(self, each.name))
        change = object.__setattr__
        try:
            change(self, "matcher", None if self.pattern is None else PathPattern(self.pattern))
        except ValueError as error:
            raise ValueError(f"pattern={self.pattern!r}: {error}") from None
        change(self, "_rewrite", None if self.rewrite is None else self._template(self.rewrite))
        if self.rewrite is not None and self.strip_prefix:
            raise ValueError(f"rewrite={self.rewrite!r}: without strip_prefix expected")
        self._check_groups()
        prefix = _quoted(_prefix_of(self.path)) if self.strip_prefix else b""
        change(self, "prefix", prefix)
        change(self, "puts_right", bool(prefix) if self.rewrite_answers is None else self.rewrite_answers)
        change(self, "is_guarded", self.auth is not None or self.basic_auth is not None)
        change(self, "edits_requests", self.request_fields is not NO_EDITS or self.is_guarded)
        is_edited = self.edits_requests or self.response_fields is not NO_EDITS or self.rewrite is not None
        goes_far = is_edited or (self.puts_right and not prefix)
        change(self, "is_ordinary", type(self.action) is str and not goes_far)

    def _template(self, text: str) -> Template:
        try:
            template = Template(text)
        except ValueError as error:
            raise ValueError(f"rewrite={error}") from None
        if others := sorted(name for name in template.variables if not group_of(name)):
            raise ValueError(f"rewrite={text!r}: {{{others[0]}}}: only {{match.NAME}} expected, a group of the pattern")
        return template

    def _check_groups(self) -> None:
        """Check that the groups that are named are the pattern's."""
        groups = self.matcher.groups if self.matcher is not None else frozenset()
        named: list[tuple[str, frozenset[str]]] = [
            ("request_fields", self.request_fields.variables),
            ("response_fields", self.response_fields.variables),
        ]
        if self._rewrite is not None:
            named.append(("rewrite", self._rewrite.variables))
        if isinstance(self.action, Redirect):
            named.append(("action", self.action.variables))
        for where, names in named:
            for name in sorted(names):
                group = group_of(name)
                if group and group not in groups:
                    known = ", ".join(sorted(groups)) or "none"
                    raise ValueError(f"{where}: {{{name}}}: a named group of the pattern expected ({known})")

    def groups_of(self, target: bytes) -> dict[str, str]:
        """Return what the groups of the pattern have of a request's path, by the names of their variables."""
        if self.matcher is None:
            return {}
        try:
            path = _normal_path(path_to_ask_for(target.partition(b"?")[0]), slash=False)
        except BadPath:  # it was not found by this path
            return {}
        return {f"match.{name}": value for name, value in (self.matcher.match(path) or {}).items()}

    def target_for(self, target: bytes) -> bytes:
        """Return the target to ask the upstream for, given the request's: a path and perhaps a query.

        Without ``strip_prefix`` and ``rewrite`` it is the same, byte for byte. With the first the path of the route is
        taken off; if it was written in another way than the route's, the rest is written as it was compared. What
        ``find`` gave this route for does not raise, but for a ``rewrite`` that groups make lead elsewhere.

        Raises:
            BadPath: as ``find`` does.
        """
        if self._rewrite is not None:
            return self._rewritten(target)
        prefix = _prefix_of(self.path) if self.strip_prefix else b""
        if not prefix:
            return target
        path, mark, query = target.partition(b"?")
        if _not_plain(path):
            path = _quoted(_normal_path(path, slash=False))
            prefix = _quoted(prefix)
        rest = path[len(prefix) :] if path.startswith(prefix) else path
        return (rest or b"/") + mark + query

    def _rewritten(self, target: bytes) -> bytes:
        assert self._rewrite is not None
        made = self._rewrite.fill_reference(self.groups_of(target) if self._rewrite.variables else {}).encode()
        path, mark, _ = made.partition(b"?")
        if _not_plain(path) and _quoted(_normal_path(path, slash=False)) != path:
            raise BadPath("rewritten")  # two groups beside each other may be dots
        _, asked, query = target.partition(b"?")
        return made if mark else path + asked + query


def plain_target(target: bytes) -> bytes:
    """Return a target that stays below whatever is put in front of it: ``/../x`` would lead out of that.

    Raises:
        BadPath: servers may read it in different ways, or as something that leads out of it.
    """
    if not target.startswith(b"/"):
        return target  # *
    path, mark, query = target.partition(b"?")
    if _not_plain(path):
        _normal_path(path, slash=True)  # what is a slash to some, too
        path = _quoted(_normal_path(path, slash=False))
    return path + mark + query


def _is_host(value: object) -> bool:
    return isinstance(value, str) and bool(_host_pattern(value.lower()))


def _is_path(value: object) -> bool:
    if not isinstance(value, str) or not value.startswith("/") or "?" in value or "#" in value:
        return False
    try:
        return b"\0" not in _normal_path(value.encode(), slash=False)
    except ValueError:
        return False


def _are_conditions(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        _is_token_text(name) and (wanted is None or isinstance(wanted, str)) for name, wanted in value.items()
    )


def _are_texts(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and name != "" and (wanted is None or isinstance(wanted, str))
        for name, wanted in value.items()
    )


def _is_rewrite(value: object) -> bool:
    return isinstance(value, str) and bool(_sound_rewrite(value))


def _is_token_text(value: object) -> bool:
    return isinstance(value, str) and value.isascii() and is_token(value.encode()) is not None


_edits = Rule.instance(FieldEdits, "edits of fields")
_RULES = {
    "action": Rule(
        lambda value: isinstance(value, StaticAnswer | Redirect) or (isinstance(value, str) and value != ""),
        "an upstream's name, an answer or a redirect",
    ),
    "name": Rule(lambda value: isinstance(value, str) and value.isprintable(), "printable text"),
    "hosts": Rule(
        lambda value: isinstance(value, tuple) and all(map(_is_host, value)),
        "a tuple of names like 'example.org' or '*.example.org', without a port",
    ),
    "path": Rule(_is_path, "a path that begins with '/', without query, '%2F' or '..' above the root"),
    "exact": Rule.flag(),
    "methods": Rule(
        lambda value: isinstance(value, frozenset) and bool(value) and all(map(_is_token_text, value)),
        "a frozenset of methods",
    ).or_none(),
    "headers": Rule(_are_conditions, "names of fields, each with its whole value"),
    "cookies": Rule(_are_conditions, "names of cookies, each with its whole value"),
    "query": Rule(_are_texts, "names of fields of the query, each with its whole value"),
    "pattern": Rule(lambda value: isinstance(value, str) and value != "", "a regular expression").or_none(),
    "encoded_slash": Rule.flag(),
    "strip_prefix": Rule.flag(),
    "rewrite": Rule(_is_rewrite, "a path that begins with one '/'").or_none(),
    "rewrite_answers": Rule.flag().or_none(),
    "request_fields": _edits,
    "response_fields": _edits,
    "timeouts": Rule.instance(ProxyTimeouts, "timeouts").or_none(),
    "retries": Rule.whole(0).or_none(),
    "guard": Rule.instance(GuardOptions, "limits of a client").or_none(),
    "buffer": Rule.instance(Buffering, "sizes of memory and file").or_none(),
    "auth": Rule.instance(ForwardAuth, "a server to be asked").or_none(),
    "basic_auth": Rule.instance(BasicAuth, "a file of passwords").or_none(),
}


class _Entry:
    """A route, ready to be compared."""

    __slots__ = ("conditions", "cookies", "exact", "is_free", "methods", "pattern", "prefix", "query", "route")

    def __init__(self, route: Route) -> None:
        self.route = route
        #: Empty for everything; of one that is exact its whole path.
        self.prefix = _normal_path(route.path.encode(), slash=False) if route.exact else _prefix_of(route.path)
        self.exact = route.exact
        self.methods = route.methods
        self.conditions = [
            (name.lower().encode(), None if value is None else value.encode("latin-1", "replace"))
            for name, value in route.headers.items()
        ]
        self.cookies = list(route.cookies.items())
        self.query = list(route.query.items())
        self.pattern = route.matcher
        #: Whether it takes whatever has its host and its path.
        self.is_free = not (self.methods is not None or self.conditions or self.cookies or self.query)

    def has_path(self, path: bytes) -> bool:
        prefix = self.prefix
        if self.exact:
            is_there = path == prefix
        else:
            is_there = path.startswith(prefix) and (len(path) == len(prefix) or path[len(prefix)] == 0x2F)
        return is_there and (self.pattern is None or self.pattern.match(path) is not None)

    def takes(self, method: str, headers: Headers, target: bytes) -> bool:
        if self.methods is not None and method not in self.methods:
            return False
        for name, wanted in self.conditions:
            value = headers.get_raw(name)
            if value is None or (wanted is not None and value != wanted):
                return False
        if self.cookies and not _has_all(self.cookies, parse_cookies(headers.get("cookie"))):
            return False
        if self.query:
            try:
                found = QueryFields(target.partition(b"?")[2].decode("latin-1"))
            except ValueError:  # more fields than anybody needs
                return False
            return _has_all(self.query, found)
        return True

    @property
    def is_open(self) -> bool:
        """Whether it takes every request that has its host."""
        return self.is_free and not (self.prefix or self.pattern is not None)


class Routes:
    """The routes of a proxy, in the order of preference among equals."""

    __slots__ = ("_any", "_candidates", "_hosts", "_suffixes", "looks_at_fields", "only", "routes")

    def __init__(self, routes: Sequence[Route]) -> None:
        #: As they were given.
        self.routes = tuple(routes)
        entries = [_Entry(route) for route in routes]
        entries.sort(key=lambda entry: (-len(entry.prefix), not entry.exact, entry.pattern is None))
        self._any = tuple(entry for entry in entries if not entry.route.hosts)
        self._hosts: dict[bytes, tuple[_Entry, ...]] = {}
        self._suffixes: dict[bytes, tuple[_Entry, ...]] = {}
        for entry in entries:
            for host in dict.fromkeys(host.lower().encode() for host in entry.route.hosts):
                table, key = (self._suffixes, host[2:]) if host.startswith(b"*.") else (self._hosts, host)
                table[key] = (*table.get(key, ()), entry)
        #: Whether some look at a request's fields.
        self.looks_at_fields = any(entry.conditions or entry.cookies for entry in entries)
        #: The one that takes everything, if it is alone.
        self.only = routes[0] if len(entries) == 1 and not routes[0].hosts and entries[0].is_open else None
        self._candidates = functools.lru_cache(CACHE_SIZE)(self._candidates_for)

    def find(self, method: str, authority: bytes, target: bytes, headers: Headers) -> Route | None:
        """Return the route of a request; None if there is none.

        ``authority`` is what Host says, or the target if it is absolute; ``target`` is as it came.

        Raises:
            BadPath: paths decide, and this one can be read in more than one way.
        """
        if self.only is not None:
            return self.only
        path = target.partition(b"?")[0]
        if len(authority) + len(path) <= MAX_CACHED:
            candidates = self._candidates(authority, path)
        else:
            candidates = self._candidates_for(authority, path)
        for entry in candidates:
            if entry.is_free or entry.takes(method, headers, target):
                return entry.route
        return None

    def _candidates_for(self, authority: bytes, path: bytes) -> tuple[_Entry, ...]:
        """Return what has host and path, the best first, up to the first that asks for nothing more."""
        entries = self._with_host(authority)
        if any(entry.prefix or entry.pattern is not None for entry in entries):
            return _with_path(entries, path_to_ask_for(path))
        return _reachable(entries)

    def _with_host(self, authority: bytes) -> tuple[_Entry, ...]:
        name = _name_of(authority)
        found = self._hosts.get(name, ())
        if self._suffixes and name[:1] != b".":
            _, dot, rest = name.partition(b".")
            while dot:
                found += self._suffixes.get(rest, ())
                _, dot, rest = rest.partition(b".")
        return found + self._any


def _with_path(entries: Sequence[_Entry], path: bytes) -> tuple[_Entry, ...]:
    normal = _normal_path(path, slash=False)
    found = _reachable([entry for entry in entries if entry.has_path(normal)])
    if _encoded_slash(path):
        normal = _normal_path(path, slash=True)
        other = _reachable([entry for entry in entries if entry.has_path(normal)])
        if found != other or not all(entry.route.encoded_slash for entry in found):
            raise BadPath("encoded-slash")
    return found


def _has_all(wanted: Sequence[tuple[str, str | None]], found: Mapping[str, str]) -> bool:
    """Whether what was found has all that is wanted."""
    for name, value in wanted:
        there = found.get(name)
        if there is None or (value is not None and there != value):
            return False
    return True


def _reachable(entries: Sequence[_Entry]) -> tuple[_Entry, ...]:
    for place, entry in enumerate(entries):
        if entry.is_free:
            return tuple(entries[: place + 1])
    return tuple(entries)


def _name_of(authority: bytes) -> bytes:
    if len(authority) > MAX_AUTHORITY:
        return b""
    name = authority.lower()
    if name[:1] == b"[":
        return name.partition(b"]")[0] + b"]"
    return name.partition(b":")[0].removesuffix(b".")


def _prefix_of(path: str) -> bytes:
    return _normal_path(path.encode(), slash=False).rstrip(b"/")


def _normal_path(path: bytes, *, slash: bool) -> bytes:
    """Return the path as it is compared. ``slash``: ``%2F`` is one; else it becomes NUL, which no path has.

    Raises:
        BadPath: servers read it in different ways.
    """
    if not _not_plain(path):
        return path
    if b"%00" in path or b"\0" in path:
        raise BadPath("nul")
    if _bad_escape(path):
        raise BadPath("bad-escape")
    decoded = unquote_to_bytes(_every_encoded_slash(b"/" if slash else b"\0", path))
    if b"\\" in decoded:
        raise BadPath("backslash")
    return _without_dots(decoded)


def _without_dots(path: bytes) -> bytes:
    found: list[bytes] = []
    segments = path.split(b"/")[1:]
    for segment in segments:
        if segment == b"..":
            if not found or b"//" in path:
                raise BadPath("dots-and-empty-segment" if found else "above-root")
            found.pop()
        elif segment.startswith((b"..;", b".;")):
            raise BadPath("dots-and-parameter")
        elif segment not in (b"", b"."):
            found.append(segment)
    is_open = found and segments[-1] in (b"", b".", b"..")
    return b"/" + b"/".join(found) + (b"/" if is_open else b"")


def _quoted(path: bytes) -> bytes:
    return quote_from_bytes(path, safe="/!$&'()*+,;=:@~").replace("%00", "%2F").encode()
