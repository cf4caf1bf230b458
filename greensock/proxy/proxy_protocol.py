"""The PROXY protocol, versions 1 and 2: what a proxy in front says of a connection, before its first byte. Pure.

The text is https://www.haproxy.org/download/2.6/doc/proxy-protocol.txt. A header is believed of trusted peers only, and
expected from each connection of theirs: to guess whether there is one would let clients send their own.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Mapping

from greensock.limits.networks import canonical_address

__all__ = ["MAX_PROXY_HEADER", "BadProxyHeader", "ProxyHeader", "parse_proxy_header", "write_proxy_header"]

#: Bytes of the longest header that is taken, of version 2; with all that is known to be sent it has some hundreds.
MAX_PROXY_HEADER = 4096
#: Bytes of the longest header of version 1 (section 2.1).
MAX_LINE = 107

Address = tuple[str, int] | str

_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_LINE_START = b"PROXY "
#: Bytes before the addresses, of version 2.
_FIXED = 16
_LOCAL, _PROXY = 0x20, 0x21
_UNSPEC, _TCP4, _TCP6, _UNIX = 0x00, 0x11, 0x21, 0x31
#: Family and protocol: datagrams are valid, but say nothing that is of use here.
_FAMILIES = frozenset({_UNSPEC, _TCP4, 0x12, _TCP6, 0x22, _UNIX, 0x32})
#: How the addresses are laid out.
_LAYOUTS = {_TCP4: struct.Struct("!4s4sHH"), _TCP6: struct.Struct("!16s16sHH"), _UNIX: struct.Struct("!108s108s")}
_CRC32C, _NOOP, _UNIQUE_ID, _SSL = 0x03, 0x04, 0x05, 0x20
_MAX_UNIQUE_ID = 128


class BadProxyHeader(ValueError):
    """The bytes are no PROXY header. Close the connection without an answer: who the client is can't be known."""


class ProxyHeader:
    """What a proxy said of a connection."""

    __slots__ = ("destination", "is_local", "source", "tlvs", "version")

    def __init__(
        self,
        version: int,
        source: Address | None = None,
        destination: Address | None = None,
        *,
        is_local: bool = False,
        tlvs: Mapping[int, bytes] | None = None,
    ) -> None:
        #: 1 or 2.
        self.version = version
        #: Whether the proxy connected for itself, as its health checks do.
        self.is_local = is_local
        #: Who connected to the proxy: ``(host, port)``, the path of a Unix socket (often empty), or None if that is not
        #: said: the connection's own addresses hold then.
        self.source = source
        #: Where it connected to, in the same way.
        self.destination = destination
        #: What else was said, by type (section 2.2.7); of a repeated type the first. Checksum and padding are left out.
        self.tlvs: Mapping[int, bytes] = tlvs or {}

    @property
    def is_tls(self) -> bool:
        """Whether the client spoke TLS to the proxy (section 2.2.7.1: PP2_TYPE_SSL with PP2_CLIENT_SSL)."""
        return bool(self.tlvs.get(_SSL, b"\0")[0] & 0x01)

    def __repr__(self) -> str:
        return f"<ProxyHeader {self.version} {self.source!r} to {self.destination!r}>"


def parse_proxy_header(data: bytes) -> tuple[ProxyHeader, int] | None:
    """Return the header that the data begin with, and its length in bytes; None if it needs more bytes.

    Never more than ``MAX_PROXY_HEADER`` bytes are asked for. A checksum is checked if there is one.

    Raises:
        BadProxyHeader: they can't become a header.
    """
    if data.startswith(_LINE_START):
        return _parse_line(data)
    if data.startswith(_SIGNATURE):
        return _parse_binary(data)
    if _LINE_START.startswith(data) or _SIGNATURE.startswith(data):
        return None
    raise BadProxyHeader(f"a connection begins with {data[:12]!r}: a PROXY header expected")


def write_proxy_header(version: int, source: Address | None, destination: Address | None) -> bytes:
    """Return a header. ``source`` and ``destination`` are ``(host, port)`` or paths; None: the proxy speaks for itself.

    An IPv4 address beside an IPv6 address is written as IPv6. What version 1 has no words for is written ``UNKNOWN``.

    Raises:
        ValueError: a version there is not, what is no address, a port not from 0 to 65535, a path of over 108 bytes.
    """
    if version not in (1, 2):
        raise ValueError(f"version={version!r}: 1 or 2 expected")
    if source is None or destination is None:
        return b"PROXY UNKNOWN\r\n" if version == 1 else _binary(_LOCAL, _UNSPEC, b"")
    if isinstance(source, str) or isinstance(destination, str):
        paths = [address if isinstance(address, str) else "" for address in (source, destination)]
        addresses = _LAYOUTS[_UNIX].pack(*map(_raw_path, paths))
        return b"PROXY UNKNOWN\r\n" if version == 1 else _binary(_PROXY, _UNIX, addresses)
    hosts = _of_one_family(_host(source[0]), _host(destination[0]))
    ports = _port(source[1]), _port(destination[1])
    is_ipv4 = hosts[0].version == 4
    if version == 1:
        words = ("PROXY", "TCP4" if is_ipv4 else "TCP6", *map(str, hosts), *map(str, ports))
        return " ".join(words).encode() + b"\r\n"
    family = _TCP4 if is_ipv4 else _TCP6
    return _binary(_PROXY, family, _LAYOUTS[family].pack(*(host.packed for host in hosts), *ports))


# -- version 1


def _parse_line(data: bytes) -> tuple[ProxyHeader, int] | None:
    end = data.find(b"\r", 0, MAX_LINE - 1)
    if end < 0:
        if len(data) >= MAX_LINE - 1:
            raise BadProxyHeader(f"a PROXY line of more than {MAX_LINE} bytes")
        return None
    if end + 1 == len(data):
        return None
    if data[end + 1] != 10:
        raise BadProxyHeader("a PROXY line with CR in it")
    words = data[len(_LINE_START) : end].split(b" ")
    if words[0] == b"UNKNOWN":
        return ProxyHeader(1), end + 2  # the rest of the line is to be ignored
    if words[0] not in (b"TCP4", b"TCP6") or len(words) != 5:
        raise BadProxyHeader(f"the PROXY line {data[:end]!r}")
    hosts = [_host_of_line(word, int(words[0][3:])) for word in words[1:3]]
    ports = [_port_of_line(word) for word in words[3:]]
    return ProxyHeader(1, (hosts[0], ports[0]), (hosts[1], ports[1])), end + 2


def _host_of_line(word: bytes, version: int) -> str:
    try:
        address = ipaddress.ip_address(word.decode("ascii"))
    except ValueError:
        address = None
    if address is None or address.version != version or b"%" in word:
        raise BadProxyHeader(f"{word!r} in the PROXY line is no IPv{version} address")
    return str(address)


def _port_of_line(word: bytes) -> int:
    if not word.isdigit() or len(word) > 5 or (word[0] == 48 and word != b"0") or int(word) > 65535:
        raise BadProxyHeader(f"{word!r} in the PROXY line is no port")
    return int(word)


# -- version 2


def _parse_binary(data: bytes) -> tuple[ProxyHeader, int] | None:
    command, family = data[12:13], data[13:14]
    if command and command[0] not in (_LOCAL, _PROXY):
        raise BadProxyHeader(f"PROXY version and command {command[0]:#04x}")
    # The family of LOCAL is to be ignored, whatever it is.
    if family and command[0] == _PROXY and family[0] not in _FAMILIES:
        raise BadProxyHeader(f"PROXY family and protocol {family[0]:#04x}")
    if len(data) < _FIXED:
        return None
    length = _FIXED + int.from_bytes(data[14:_FIXED], "big")
    if length > MAX_PROXY_HEADER:
        raise BadProxyHeader(f"a PROXY header of {length} bytes: at most {MAX_PROXY_HEADER} are taken")
    layout = _LAYOUTS.get(family[0]) if command[0] == _PROXY else None
    if layout is not None and length < _FIXED + layout.size:
        raise BadProxyHeader(f"a PROXY header of {length} bytes is too short for its addresses")
    if len(data) < length:
        return None
    if layout is None:
        return ProxyHeader(2, is_local=command[0] == _LOCAL), length
    source, destination = _addresses(family[0], layout.unpack_from(data, _FIXED))
    tlvs = _tlvs(data[:length], _FIXED + layout.size)
    return ProxyHeader(2, source, destination, tlvs=tlvs), length


def _addresses(family: int, values: tuple[bytes, ...]) -> tuple[Address, Address]:
    if family == _UNIX:
        return _path(values[0]), _path(values[1])
    hosts = [str(ipaddress.ip_address(value)) for value in values[:2]]
    ports = [int(value) for value in values[2:]]
    return (hosts[0], ports[0]), (hosts[1], ports[1])


def _path(raw: bytes) -> str:
    # An abstract name begins with a zero byte, and has no other end than its last byte that is not zero.
    path = raw.rstrip(b"\x00") if raw.startswith(b"\x00") else raw.partition(b"\x00")[0]
    return path.decode("utf-8", "surrogateescape")


def _tlvs(header: bytes, place: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while place < len(header):
        value_at = place + 3
        end = value_at + int.from_bytes(header[place + 1 : value_at], "big")
        if end > len(header) or value_at > len(header):
            raise BadProxyHeader("a PROXY header whose last value is cut off")
        kind, value = header[place], header[value_at:end]
        if kind == _CRC32C:
            _check(header, value_at, value)
        elif kind == _UNIQUE_ID and len(value) > _MAX_UNIQUE_ID:
            raise BadProxyHeader(f"a unique id of {len(value)} bytes: at most {_MAX_UNIQUE_ID} are allowed")
        elif kind == _SSL and len(value) < 5:
            raise BadProxyHeader(f"what is said of TLS has {len(value)} bytes: 5 at least expected")
        elif kind != _NOOP:
            found.setdefault(kind, value)
        place = end
    return found


def _check(header: bytes, place: int, checksum: bytes) -> None:
    """Check the checksum of the header, which was made with zeros in its own place."""
    if len(checksum) != 4:
        raise BadProxyHeader(f"a checksum of {len(checksum)} bytes: 4 expected")
    if _crc32c(header[:place] + bytes(4) + header[place + 4 :]) != int.from_bytes(checksum, "big"):
        raise BadProxyHeader("the checksum of a PROXY header is wrong")


def _binary(command: int, family: int, rest: bytes) -> bytes:
    return _SIGNATURE + struct.pack("!BBH", command, family, len(rest)) + rest


# -- what both have in common


def _host(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    address = canonical_address(host)
    if not address:
        raise ValueError(f"host {host!r}: an address expected")
    return ipaddress.ip_address(address)


def _of_one_family(
    *hosts: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> list[ipaddress.IPv4Address] | list[ipaddress.IPv6Address]:
    ipv4 = [host for host in hosts if host.version == 4]
    if len(ipv4) == len(hosts):
        return ipv4
    return [host if host.version == 6 else ipaddress.IPv6Address(f"::ffff:{host}") for host in hosts]


def _port(port: int) -> int:
    if not 0 <= port <= 65535:
        raise ValueError(f"port {port!r}: 0 to 65535 expected")
    return port


def _raw_path(path: str) -> bytes:
    raw = path.encode("utf-8", "surrogateescape")
    if len(raw) > 108:
        raise ValueError(f"path {path!r}: at most 108 bytes expected")
    return raw


def _crc32c(data: bytes) -> int:
    """Return the checksum of Castagnoli (RFC 3720 appendix B.4): some 0.1 us a byte."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC_TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _crc_of_byte(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_CRC_TABLE = tuple(map(_crc_of_byte, range(256)))
