"""What is changed in a message, and what the proxy answers by itself: edits, static answers, redirects, error pages.

Pure. A *template* is text with ``{name}`` in it, where name is one of :data:`VARIABLES`, or ``match.`` and the name of
a group in the route's pattern; a brace is written twice. All of it is checked when it is made, so that nothing can fail
while a request waits. What comes from the network is made harmless where it is put in: it can neither end a field nor,
in a redirect, lead to another server than is written.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256

from greensock import TLSInfo
from greensock.http.wire.headers import Headers
from greensock.http.wire.syntax import is_token
from greensock.http.wire.target import path_to_ask_for
from greensock.http.wire.writer import phrase_of

__all__ = [
    "NO_EDITS",
    "TLS_VARIABLES",
    "VARIABLES",
    "ErrorPage",
    "ErrorPages",
    "FieldEdits",
    "Redirect",
    "StaticAnswer",
    "Template",
    "group_of",
    "tls_variables",
    "variables_of",
]

#: What a template may name, and what stands for it.
VARIABLES: Mapping[str, str] = {
    "authority": "what Host says",
    "client": "the client's address",
    "host": "what Host says, without the port",
    "method": "the method",
    "path": "the target's path as it came",
    "query": "the target's query without its question mark",
    "request_id": "the request's id: a trusted peer's X-Request-Id, or one of the proxy's own",
    "scheme": "http or https",
    "target": "path and query as they came",
    "tls_cipher": "the cipher of the client's connection; this and what follows is empty without TLS",
    "tls_client_name": "the subject of the client's certificate, if it was asked for and verified, as in CN=name,O=...",
    "tls_client_sha256": "the SHA-256 of that certificate, in hexadecimal digits",
    "tls_server_name": "the name that the client asked for by TLS",
    "tls_version": "TLSv1.2 or TLSv1.3",
}
#: Those that the client's TLS tells of.
TLS_VARIABLES = frozenset(name for name in VARIABLES if name.startswith("tls_"))

#: Written by the proxy itself; an edit of them would break the message or let it reach another host.
_OURS = frozenset(
    b"connection content-length expect host keep-alive proxy-connection te trailer transfer-encoding upgrade".split()
)
_REDIRECTS = (301, 302, 303, 307, 308)
#: Statuses without a body (RFC 9110 section 6.4.1).
_BODILESS = (204, 205, 304)

_unsafe_in_field = re.compile(r"[^\t\x20-\x7e\x80-\xff]").sub
_unsafe_in_url = re.compile(r"[^!#$&-;=?-\[\]_a-z~%]").sub
_group = re.compile(r"match\.([A-Za-z_][A-Za-z0-9_]*)").fullmatch
_page_key = re.compile(r"[1-9][0-9][0-9]|[45]xx").fullmatch
#: A path of this host, or an authority that ends where the client's part begins.
_sound_location = re.compile(
    r"(?:(?:https?|\{scheme\})://(?:[^/?#{}\s\\@]|\{host\}|\{authority\})+(?=$|[/?#]|\{path\}|\{target\})"
    r"|/(?:(?![/\\{])|(?=\{match\.))|\{path\}|\{target\})"
).match


#: What parts the fields of a query, and a plus, which would be a space there.
_NO_SEPARATORS = str.maketrans({each: f"%{ord(each):02X}" for each in "&=+;"})


class Template:
    """Text with variables in it.

    Raises:
        ValueError: a variable that does not exist, or a brace that is not closed.
    """

    __slots__ = ("_pieces", "text", "variables")

    def __init__(self, text: str) -> None:
        #: As it was written.
        self.text = text
        self._pieces = _pieces(text)
        #: The names in it.
        self.variables = frozenset(name for _, name in self._pieces if name is not None)

    def fill(self, variables: Mapping[str, str]) -> str:
        """Return the text with the variables' values in it; one that is not given is empty."""
        return "".join([text + (variables.get(name, "") if name is not None else "") for text, name in self._pieces])

    def fill_reference(self, variables: Mapping[str, str]) -> str:
        """Return the same of a URL, or a part of one: a group of a path behind its ``?`` is one value there.

        What parts the fields of a query is nothing special in a path, and a client could add fields by it.
        """
        found: list[str] = []
        in_query = False
        for text, name in self._pieces:
            in_query = in_query or "?" in text
            value = variables.get(name, "") if name is not None else ""
            found += text, value.translate(_NO_SEPARATORS) if in_query and name and group_of(name) else value
        return "".join(found)


def _pieces(text: str) -> list[tuple[str, str | None]]:
    try:
        parsed = list(string.Formatter().parse(text))
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}: a brace that is meant is written twice") from None
    for _, name, spec, conversion in parsed:
        if name is not None and ((name not in VARIABLES and not group_of(name)) or spec or conversion):
            raise ValueError(f"{text!r}: {{{name}}}: one of {', '.join(VARIABLES)} expected; a brace is written twice")
    return [(literal, name) for literal, name, _, _ in parsed]


def group_of(variable: str) -> str:
    """Return the name of the group that a variable stands for; empty if it is another variable."""
    match = _group(variable)
    return match[1] if match is not None else ""


def variables_of(
    method: str, authority: bytes, target: bytes, *, scheme: str, client: str, request_id: str = ""
) -> dict[str, str]:
    """Return the value of each variable for one request; an absolute target is its path and query."""
    whole = path_to_ask_for(target).decode("latin-1")
    path, _, query = whole.partition("?")
    name = authority.decode("latin-1")
    return {
        "authority": name,
        "client": client,
        "host": re.sub(r":[0-9]*$", "", name),
        "method": method,
        "path": path,
        "query": query,
        "request_id": request_id,
        "scheme": scheme,
        "target": whole,
    }


Pairs = Mapping[str, str] | Iterable[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class FieldEdits:
    """Changes to the fields of a head: first those to remove, then those to set, then those to add.

    ``add`` and ``set`` are pairs, or a mapping, of names and templates.

    Raises:
        ValueError: a name that is no token, or one that the proxy writes itself; a value that would split the message,
            or that is no template.
    """

    #: Put behind the fields that are there.
    add: tuple[tuple[str, str], ...] = ()
    #: Put in the place of the fields of that name.
    set: tuple[tuple[str, str], ...] = ()
    #: Names of fields to drop.
    remove: tuple[str, ...] = ()
    #: The variables that are needed to apply them.
    variables: frozenset[str] = field(init=False, default=frozenset(), compare=False, repr=False)
    _set: list[tuple[str, Template]] = field(init=False, compare=False, repr=False)
    _add: list[tuple[str, Template]] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        change = object.__setattr__
        change(self, "add", _as_pairs("add", self.add))
        change(self, "set", _as_pairs("set", self.set))
        change(self, "remove", _as_names(self.remove))
        change(self, "_set", [(name, _template("set", name, value)) for name, value in self.set])
        change(self, "_add", [(name, _template("add", name, value)) for name, value in self.add])
        change(self, "variables", frozenset().union(*(each.variables for _, each in (*self._set, *self._add))))

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.add or self.set or self.remove)

    def apply(self, headers: Headers, variables: Mapping[str, str]) -> None:
        """Change the fields. ``variables`` must have what ``self.variables`` names; it never raises."""
        for name in self.remove:
            headers.remove(name)
        for name, template in self._set:
            headers.set(name, _field_value(template, variables))
        for name, template in self._add:
            headers.add(name, _field_value(template, variables))


def _field_value(template: Template, variables: Mapping[str, str]) -> str:
    if not template.variables:
        return template.fill(variables)
    return _unsafe_in_field("?", template.fill(variables))


def _as_pairs(what: str, given: Pairs) -> tuple[tuple[str, str], ...]:
    try:
        pairs = tuple((name, value) for name, value in (given.items() if isinstance(given, Mapping) else given))
    except (TypeError, ValueError):
        pairs = None
    if pairs is None or not all(isinstance(name, str) and isinstance(value, str) for name, value in pairs):
        raise ValueError(f"{what}={given!r}: names and values as text expected")
    for name, _ in pairs:
        _check_name(what, name)
    return pairs


def _as_names(given: Iterable[str]) -> tuple[str, ...]:
    names = () if isinstance(given, str) else tuple(given)
    if isinstance(given, str) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"remove={given!r}: a tuple of names of fields expected")
    for name in names:
        _check_name("remove", name)
    return names


def _check_name(what: str, name: str) -> None:
    if not name.isascii() or not is_token(name.encode()):
        raise ValueError(f"{what}: field {name!r}: a token (letters, digits, hyphens) expected")
    if name.lower().encode() in _OURS:
        raise ValueError(f"{what}: field {name!r}: a field that the proxy does not write itself expected")


def _template(what: str, name: str, value: str) -> Template:
    try:
        template = Template(value)
        Headers([(name, value)])
    except ValueError as error:
        raise ValueError(f"{what}: {name}: {error}") from None
    return template


#: No changes.
NO_EDITS = FieldEdits()


@dataclass(frozen=True, slots=True)
class StaticAnswer:
    """An answer that needs no upstream. The same bytes every time.

    Raises:
        ValueError: a status that is no final one, a body for a status that has none, or an impossible field.
    """

    #: 200 to 599.
    status: int = 200
    #: The body; text is kept as UTF-8.
    body: bytes | str = b""
    #: Further fields: pairs, or a mapping.
    headers: tuple[tuple[str, str], ...] = ()
    #: What Content-Type says; there is no such field if the body is empty.
    content_type: str = "text/plain; charset=utf-8"

    def __post_init__(self) -> None:
        if isinstance(self.status, bool) or not isinstance(self.status, int) or not 200 <= self.status <= 599:
            raise ValueError(f"status={self.status!r}: 200 to 599 expected")
        if not isinstance(self.body, bytes | str):
            raise ValueError(f"body={self.body!r}: text expected")
        if self.body and self.status in _BODILESS:
            raise ValueError(f"body={self.body[:40]!r}: none expected, as {self.status} has no body")
        object.__setattr__(self, "body", self.body.encode() if isinstance(self.body, str) else self.body)
        object.__setattr__(self, "headers", _as_pairs("headers", self.headers))
        if not isinstance(self.content_type, str) or not self.content_type:
            raise ValueError(f"content_type={self.content_type!r}: a media type expected")
        self.fields()

    @property
    def content(self) -> bytes:
        """The body as bytes."""
        assert isinstance(self.body, bytes)
        return self.body

    def fields(self) -> Headers:
        """Return its fields, Content-Type among them, as a copy that can be changed."""
        headers = Headers(self.headers)
        if self.body and "content-type" not in headers:
            headers.add("Content-Type", self.content_type)
        return headers


@dataclass(frozen=True, slots=True)
class Redirect:
    """Send the client elsewhere.

    The location is a template. Where a request's own text begins the path, two slashes at its begin are one, so that
    ``//elsewhere/`` does not become the name of a server.

    Raises:
        ValueError: a status that does not redirect; a location that leaves it to the request where it leads.
    """

    #: ``http://`` or ``https://`` and an authority, or a path of this host; then perhaps ``{path}`` or ``{target}``.
    location: str
    #: 301, 302, 303, 307 or 308.
    status: int = 302
    _template: Template = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.status, bool) or self.status not in _REDIRECTS:
            raise ValueError(f"status={self.status!r}: one of {', '.join(map(str, _REDIRECTS))} expected")
        if not isinstance(self.location, str) or not _sound_location(self.location):
            raise ValueError(
                f"location={self.location!r}: http://host/..., https://host/..., /path, {{path}} or {{target}} expected"
            )
        try:
            object.__setattr__(self, "_template", Template(self.location))
        except ValueError as error:
            raise ValueError(f"location={error}") from None

    @property
    def variables(self) -> frozenset[str]:
        """The variables that are needed to fill it in."""
        return self._template.variables

    def location_for(self, variables: Mapping[str, str]) -> bytes:
        """Return the value of Location. What a URL can't have is percent-encoded; it never raises."""
        filled = self._template.fill_reference(variables)
        if filled[:1] == "/" or filled[:1] == "\\":
            filled = "/" + filled.lstrip("/\\")
        return _unsafe_in_url(_percent_encoded, filled).encode("ascii")


def _percent_encoded(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match.group().encode("utf-8", "surrogatepass"))


@dataclass(frozen=True, slots=True)
class ErrorPage:
    """What is shown for an error."""

    #: The whole page.
    body: bytes
    #: What Content-Type says.
    content_type: str = "text/html; charset=utf-8"


class ErrorPages:
    """The pages for errors that the proxy itself answers with.

    ``pages`` maps a status, as a number or text, or ``4xx`` and ``5xx``, to a page. A status of its own goes before its
    class; without either the page is the status and its phrase as one line of text.

    Raises:
        ValueError: a key that is none of these.
    """

    __slots__ = ("_pages",)

    def __init__(self, pages: Mapping[str | int, ErrorPage] | Mapping[str, ErrorPage] = {}) -> None:
        self._pages: dict[str, ErrorPage] = {}
        for key, page in pages.items():
            text = str(key)
            if not _page_key(text) or text[0] not in "45":
                raise ValueError(f"{key!r}: a status from 400 to 599, 4xx or 5xx expected")
            self._pages[text] = page

    def find(self, status: int) -> ErrorPage | None:
        """Return the page that was given for a status or its class; None if there was none."""
        return self._pages.get(str(status)) or self._pages.get(f"{status // 100}xx")

    def page(self, status: int, reason: str = "") -> tuple[bytes, str]:
        """Return body and Content-Type for a status. ``reason`` is not shown: it is for the log."""
        page = self.find(status)
        if page is not None:
            return page.body, page.content_type
        return b"%d %b\n" % (status, phrase_of(status) or b"Error"), "text/plain; charset=utf-8"

    def __len__(self) -> int:
        return len(self._pages)


#: What the parts of a name are called (RFC 4514 section 3).
_PARTS = {
    "commonName": "CN",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "countryName": "C",
    "localityName": "L",
    "stateOrProvinceName": "ST",
}


def tls_variables(tls: TLSInfo | None) -> dict[str, str]:
    """Return what the variables of TLS stand for."""
    if tls is None:
        return dict.fromkeys(sorted(TLS_VARIABLES), "")
    verified, der = tls.peer_certificate, tls.peer_certificate_der
    subject = ""
    if verified is not None:
        parts = [pair for part in verified.get("subject", ()) for pair in part]
        subject = ",".join(f"{_PARTS.get(name, name)}={_escaped(value)}" for name, value in parts)
    return {
        "tls_cipher": tls.cipher,
        "tls_client_name": subject,
        "tls_client_sha256": sha256(der).hexdigest() if verified is not None and der is not None else "",
        "tls_server_name": tls.server_name or "",
        "tls_version": tls.version,
    }


def _escaped(value: str) -> str:
    """Return a value of a name with what would end it escaped (RFC 4514 section 2.4)."""
    return re.sub(r"([,+\"\\<>;=])", r"\\\1", value)
