"""The PROXY protocol, versions 1 and 2."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greensock.proxy import MAX_PROXY_HEADER, BadProxyHeader, parse_proxy_header, write_proxy_header
from greensock.proxy.proxy_protocol import MAX_LINE, _crc32c

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")
IPV4 = bytes([192, 0, 2, 1, 198, 51, 100, 1, 0x1F, 0x90, 0, 80])
IPV4_SAID = (("192.0.2.1", 8080), ("198.51.100.1", 80))
IPV6 = (
    ipaddress.ip_address("2001:db8::1").packed
    + ipaddress.ip_address("::ffff:1.2.3.4").packed
    + struct.pack("!HH", 65535, 0)
)
IPV6_SAID = (("2001:db8::1", 65535), (str(ipaddress.ip_address("::ffff:1.2.3.4")), 0))


def binary(command: int, family: int, rest: bytes) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(rest)) + rest


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


def with_checksum(rest_before: bytes, rest_after: bytes = b"", wrong: int = 0) -> bytes:
    zeroed = binary(0x21, 0x11, rest_before + tlv(3, bytes(4)) + rest_after)
    checksum = struct.pack("!I", _crc32c(zeroed) ^ wrong)
    return binary(0x21, 0x11, rest_before + tlv(3, checksum) + rest_after)


def unix(source: bytes, destination: bytes) -> bytes:
    return source.ljust(108, b"\x00") + destination.ljust(108, b"\x00")


LONGEST_LINE = b"PROXY UNKNOWN " + b"f" * (MAX_LINE - 16) + b"\r\n"

#: data, version, source, destination, is_local, tlvs
GOOD = {
    "v1 ipv4": (b"PROXY TCP4 192.0.2.1 198.51.100.1 8080 80\r\n", 1, *IPV4_SAID, False, {}),
    "v1 ports": (
        b"PROXY TCP4 0.0.0.0 255.255.255.255 0 65535\r\n",
        1,
        ("0.0.0.0", 0),
        ("255.255.255.255", 65535),
        False,
        {},
    ),
    "v1 ipv6": (b"PROXY TCP6 2001:DB8::1 ::1 1 2\r\n", 1, ("2001:db8::1", 1), ("::1", 2), False, {}),
    "v1 longest ipv6": (
        b"PROXY TCP6 ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n".replace(b"f...f", b":".join([b"ffff"] * 6)),
        1,
        (":".join(["ffff"] * 8), 65535),
        (":".join(["ffff"] * 8), 65535),
        False,
        {},
    ),
    "v1 unknown": (b"PROXY UNKNOWN\r\n", 1, None, None, False, {}),
    "v1 unknown with a rest": (b"PROXY UNKNOWN \x00\xff any 1 2 3 4 5\r\n", 1, None, None, False, {}),
    "v1 longest": (LONGEST_LINE, 1, None, None, False, {}),
    "v2 ipv4": (binary(0x21, 0x11, IPV4), 2, *IPV4_SAID, False, {}),
    "v2 ipv6": (binary(0x21, 0x21, IPV6), 2, *IPV6_SAID, False, {}),
    "v2 unix": (binary(0x21, 0x31, unix(b"/run/a", b"")), 2, "/run/a", "", False, {}),
    "v2 unix abstract": (binary(0x21, 0x31, unix(b"\x00name", b"/b\x00junk")), 2, "\x00name", "/b", False, {}),
    "v2 unix full": (binary(0x21, 0x31, b"x" * 108 + b"\xff" * 108), 2, "x" * 108, "\udcff" * 108, False, {}),
    "v2 local": (binary(0x20, 0x00, b""), 2, None, None, True, {}),
    "v2 local with a block": (binary(0x20, 0x11, IPV4 + b"\x01"), 2, None, None, True, {}),
    "v2 local of no family": (binary(0x20, 0xFF, b"junk"), 2, None, None, True, {}),
    "v2 unspec": (binary(0x21, 0x00, b""), 2, None, None, False, {}),
    "v2 unspec with a block": (binary(0x21, 0x00, b"junk"), 2, None, None, False, {}),
    "v2 datagrams": (binary(0x21, 0x12, IPV4), 2, None, None, False, {}),
    "v2 datagrams over ipv6": (binary(0x21, 0x22, b""), 2, None, None, False, {}),
    "v2 datagrams over unix": (binary(0x21, 0x32, b""), 2, None, None, False, {}),
    "v2 values": (
        binary(0x21, 0x11, IPV4 + tlv(2, b"a.example") + tlv(4, b"\x00" * 9) + tlv(0xEA, b"") + tlv(2, b"second")),
        2,
        *IPV4_SAID,
        False,
        {2: b"a.example", 0xEA: b""},
    ),
    "v2 empty value at the end": (binary(0x21, 0x11, IPV4 + tlv(0xEA, b"")), 2, *IPV4_SAID, False, {0xEA: b""}),
    "v2 unique id": (binary(0x21, 0x11, IPV4 + tlv(5, b"i" * 128)), 2, *IPV4_SAID, False, {5: b"i" * 128}),
    "v2 tls": (binary(0x21, 0x11, IPV4 + tlv(0x20, b"\x01....")), 2, *IPV4_SAID, False, {0x20: b"\x01...."}),
    "v2 checksum": (with_checksum(IPV4 + tlv(1, b"h2"), tlv(2, b"x")), 2, *IPV4_SAID, False, {1: b"h2", 2: b"x"}),
    "v2 longest": (
        binary(0x21, 0x11, IPV4 + tlv(0xE0, b"x" * (MAX_PROXY_HEADER - 31))),
        2,
        *IPV4_SAID,
        False,
        {0xE0: b"x" * (MAX_PROXY_HEADER - 31)},
    ),
}

BAD = {
    "http": b"GET / HTTP/1.1\r\n\r\n",
    "tls": b"\x16\x03\x01",
    "lower case": b"proxy TCP4 ",
    "no space": b"PROXYTCP4",
    "v1 nothing": b"PROXY \r\n",
    "v1 two spaces": b"PROXY  TCP4 192.0.2.1 198.51.100.1 8080 80\r\n",
    "v1 two spaces later": b"PROXY TCP4 192.0.2.1  198.51.100.1 8080 80\r\n",
    "v1 space at the end": b"PROXY TCP4 192.0.2.1 198.51.100.1 8080 80 \r\n",
    "v1 tab": b"PROXY TCP4\t192.0.2.1 198.51.100.1 8080 80\r\n",
    "v1 udp": b"PROXY UDP4 192.0.2.1 198.51.100.1 8080 80\r\n",
    "v1 unknown with more": b"PROXY UNKNOWNS\r\n",
    "v1 ipv6 as ipv4": b"PROXY TCP4 ::1 ::1 8080 80\r\n",
    "v1 ipv4 as ipv6": b"PROXY TCP6 192.0.2.1 ::1 8080 80\r\n",
    "v1 zone": b"PROXY TCP6 fe80::1%eth0 ::1 8080 80\r\n",
    "v1 brackets": b"PROXY TCP6 [::1] ::1 8080 80\r\n",
    "v1 zeros in an address": b"PROXY TCP4 192.0.02.1 198.51.100.1 8080 80\r\n",
    "v1 short address": b"PROXY TCP4 192.0.2 198.51.100.1 8080 80\r\n",
    "v1 a name": b"PROXY TCP4 localhost 198.51.100.1 8080 80\r\n",
    "v1 not ascii": b"PROXY TCP4 192.0.2.\xb2 198.51.100.1 8080 80\r\n",
    "v1 zeros in a port": b"PROXY TCP4 192.0.2.1 198.51.100.1 08080 80\r\n",
    "v1 large port": b"PROXY TCP4 192.0.2.1 198.51.100.1 65536 80\r\n",
    "v1 signed port": b"PROXY TCP4 192.0.2.1 198.51.100.1 +80 80\r\n",
    "v1 empty port": b"PROXY TCP4 192.0.2.1 198.51.100.1  80\r\n",
    "v1 no ports": b"PROXY TCP4 192.0.2.1 198.51.100.1\r\n",
    "v1 LF": b"PROXY TCP4 192.0.2.1 198.51.100.1 8080 80\n\r\n",
    "v1 CR": b"PROXY UNKNOWN \rx\r\n",
    "v1 too long": LONGEST_LINE.replace(b"\r\n", b"f\r\n"),
    "v1 endless": LONGEST_LINE[:-2] + b"f",
    "v2 version 1": binary(0x11, 0x11, IPV4),
    "v2 version 3": SIGNATURE + b"\x31",
    "v2 command 2": SIGNATURE + b"\x22",
    "v2 family 4": SIGNATURE + b"\x21\x41",
    "v2 protocol 3": SIGNATURE + b"\x21\x13",
    "v2 family without protocol": SIGNATURE + b"\x21\x10",
    "v2 protocol without family": SIGNATURE + b"\x21\x01",
    "v2 short ipv4": binary(0x21, 0x11, IPV4[:-1]),
    "v2 short ipv6": binary(0x21, 0x21, IPV6[:-1]),
    "v2 short unix": binary(0x21, 0x31, bytes(215)),
    "v2 short ipv4, not yet whole": binary(0x21, 0x11, IPV4[:-1])[:16],
    "v2 too long": binary(0x21, 0x11, IPV4 + tlv(0xE0, bytes(MAX_PROXY_HEADER - 30))),
    "v2 too long, not yet whole": SIGNATURE + b"\x20\x00\xff\xff",
    "v2 value cut": binary(0x21, 0x11, IPV4 + tlv(2, b"name")[:-1]),
    "v2 value without length": binary(0x21, 0x11, IPV4 + b"\x02"),
    "v2 value with half a length": binary(0x21, 0x11, IPV4 + b"\x02\x00"),
    "v2 short tls": binary(0x21, 0x11, IPV4 + tlv(0x20, b"\x01" + bytes(3))),
    "v2 long unique id": binary(0x21, 0x11, IPV4 + tlv(5, bytes(129))),
    "v2 wrong checksum": with_checksum(IPV4, wrong=1),
    "v2 short checksum": binary(0x21, 0x11, IPV4 + tlv(3, b"abc")),
    "v2 changed behind the checksum": with_checksum(IPV4, tlv(2, b"a"))[:-1] + b"b",
}


@pytest.mark.parametrize("name", GOOD)
def test_good_headers(name):
    data, version, source, destination, is_local, tlvs = GOOD[name]
    for rest in (b"", b"GET / HTTP/1.1\r\n\r\n", SIGNATURE):
        header, length = parse_proxy_header(data + rest)
        assert length == len(data)
        assert (header.version, header.source, header.destination) == (version, source, destination)
        assert header.is_local is is_local
        assert header.tlvs == tlvs
    for end in range(len(data)):
        assert parse_proxy_header(data[:end]) is None, data[:end]


@pytest.mark.parametrize(
    ("value", "is_tls"),
    [(b"\x01", True), (b"\x07", True), (b"\x00", False), (b"\x06", False), (None, False)],  # 2 and 4: a certificate
)
def test_whether_the_client_spoke_tls(value, is_tls):
    rest = IPV4 if value is None else IPV4 + tlv(0x20, value + bytes(4) + tlv(0x21, b"TLSv1.3"))
    header, _ = parse_proxy_header(binary(0x21, 0x11, rest))
    assert header.is_tls is is_tls


@pytest.mark.parametrize("name", BAD)
def test_bad_headers(name):
    with pytest.raises(BadProxyHeader):
        parse_proxy_header(BAD[name])
    # Refused once, it is refused whatever follows; and before that, no header is found in a part of it.
    refused = False
    for end in range(len(BAD[name]) + 1):
        try:
            found = parse_proxy_header(BAD[name][:end])
        except BadProxyHeader:
            refused = True
        else:
            assert found is None
            assert not refused


@given(
    st.binary(max_size=300)
    | st.binary(max_size=60).map(SIGNATURE.__add__)
    | st.binary(max_size=60).map(b"PROXY ".__add__)
)
def test_any_bytes_give_a_header_or_one_error(data):
    try:
        found = parse_proxy_header(data)
    except BadProxyHeader:
        return
    assert found is None or 0 < found[1] <= len(data)


@given(
    st.sampled_from([0x20, 0x21]),
    st.sampled_from([0x00, 0x11, 0x12, 0x21, 0x31]),
    st.binary(max_size=40) | st.binary(max_size=30).map(IPV6.__add__) | st.binary(max_size=30).map(bytes(216).__add__),
    st.binary(max_size=5),
)
def test_any_block_gives_a_header_or_one_error(command, family, block, rest):
    data = binary(command, family, block)
    try:
        assert parse_proxy_header(data + rest)[1] == len(data)
    except BadProxyHeader:
        pass


def test_the_checksum_is_that_of_castagnoli():
    # RFC 3720 appendix B.4
    assert _crc32c(b"123456789") == 0xE3069283
    assert _crc32c(bytes(32)) == 0x8A9136AA
    assert _crc32c(b"\xff" * 32) == 0x62A8AB43


# -- writing


@pytest.mark.parametrize(
    ("source", "destination", "line", "family"),
    [
        (("192.0.2.1", 1), ("198.51.100.1", 80), b"PROXY TCP4 192.0.2.1 198.51.100.1 1 80\r\n", 0x11),
        (("::ffff:192.0.2.1", 1), ("198.51.100.1", 80), b"PROXY TCP4 192.0.2.1 198.51.100.1 1 80\r\n", 0x11),
        (("2001:DB8::1", 0), ("fe80::1%eth0", 65535), b"PROXY TCP6 2001:db8::1 fe80::1 0 65535\r\n", 0x21),
        (None, None, b"PROXY UNKNOWN\r\n", 0x00),
        (None, ("192.0.2.1", 1), b"PROXY UNKNOWN\r\n", 0x00),
        ("", "/run/x.sock", b"PROXY UNKNOWN\r\n", 0x31),
        ("", ("192.0.2.1", 1), b"PROXY UNKNOWN\r\n", 0x31),
    ],
)
def test_written_headers(source, destination, line, family):
    assert write_proxy_header(1, source, destination) == line
    data = write_proxy_header(2, source, destination)
    assert data[13] == family
    header, length = parse_proxy_header(data)
    assert length == len(data)
    assert header.is_local is (family == 0)
    if family in (0x11, 0x21):
        assert parse_proxy_header(line)[0].source == header.source
        assert parse_proxy_header(line)[0].destination == header.destination


def test_known_bytes():
    assert write_proxy_header(2, *IPV4_SAID) == binary(0x21, 0x11, IPV4)
    assert write_proxy_header(2, "/run/a", "\x00b") == binary(0x21, 0x31, unix(b"/run/a", b"\x00b"))
    assert write_proxy_header(2, "x" * 108, "") == binary(0x21, 0x31, unix(b"x" * 108, b""))
    assert write_proxy_header(2, None, None) == SIGNATURE + b"\x20\x00\x00\x00"


@pytest.mark.parametrize("addresses", [(("192.0.2.1", 1), ("::1", 2)), (("::1", 2), ("192.0.2.1", 1))])
def test_an_ipv4_address_beside_ipv6(addresses):
    for version in (1, 2):
        header, _ = parse_proxy_header(write_proxy_header(version, *addresses))
        for said, (host, port) in zip((header.source, header.destination), addresses, strict=True):
            expected = ipaddress.ip_address(host if ":" in host else f"::ffff:{host}")
            assert (ipaddress.ip_address(said[0]), said[1]) == (expected, port)


@pytest.mark.parametrize(
    ("version", "source"),
    [
        (0, ("::1", 1)),
        (3, ("::1", 1)),
        (1, ("localhost", 1)),
        (1, ("1.2.3.4\r\n", 1)),
        (2, ("", 1)),
        (1, ("::1", -1)),
        (2, ("::1", 65536)),
        (2, "x" * 109),
    ],
)
def test_what_can_not_be_written(version, source):
    with pytest.raises(ValueError):
        write_proxy_header(version, source, ("::1", 80) if isinstance(source, tuple) else "")


ADDRESSES = st.tuples(st.ip_addresses().map(str), st.integers(0, 65535))


@given(ADDRESSES, ADDRESSES)
def test_what_is_written_is_read(source, destination):
    headers = [parse_proxy_header(write_proxy_header(version, source, destination)) for version in (1, 2)]
    assert headers[0][0].source == headers[1][0].source
    assert headers[0][0].destination == headers[1][0].destination
    assert headers[0][0].source[1] == source[1]
    assert len(write_proxy_header(1, source, destination)) <= MAX_LINE


@given(st.text(max_size=20).filter(lambda path: "\x00" not in path), st.binary(max_size=108))
def test_paths_that_are_written_are_read(source, raw):
    destination = raw.replace(b"\x00", b"x").decode("utf-8", "surrogateescape")
    header, _ = parse_proxy_header(write_proxy_header(2, source, destination))
    assert (header.source, header.destination) == (source, destination)
