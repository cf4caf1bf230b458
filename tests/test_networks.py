"""Which addresses are in which networks, and how addresses are spelled."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greensock.limits.networks import MAX_TEXT, Networks, canonical_address, network_of, node_address


@pytest.mark.parametrize(
    ("networks", "inside", "outside"),
    [
        ([], [], ["", "127.0.0.1", "::1", "unix"]),
        (["127.0.0.1"], ["127.0.0.1", "::ffff:127.0.0.1", "::FFFF:7f00:1"], ["127.0.0.2", "::1", "", "127.1"]),
        (["10.0.0.0/8"], ["10.0.0.0", "10.255.255.255"], ["9.255.255.255", "11.0.0.0", "10.0.0.1:80", "010.0.0.1"]),
        (["0.0.0.0/0"], ["0.0.0.0", "255.255.255.255", "::ffff:1.2.3.4"], ["::", "2001:db8::1", ""]),
        (["::/0"], ["::", "2001:db8::1"], ["1.2.3.4", "::ffff:1.2.3.4", ""]),
        (["2001:db8::/32"], ["2001:db8::", "2001:DB8:0:0::f"], ["2001:db9::", "[2001:db8::1]"]),
        (["fe80::/10"], ["fe80::1", "fe80::1%eth0"], ["fec0::1%eth0"]),
        (["::ffff:10.0.0.0/104"], ["10.1.2.3", "::ffff:10.1.2.3"], ["11.0.0.0"]),
        (["::ffff:0:0/96"], ["0.0.0.0", "255.0.0.1"], ["::1"]),
        (["unix"], [""], ["127.0.0.1", "unix"]),
        (["unix", "::1", "127.0.0.0/8"], ["", "::1", "127.9.9.9"], ["::2"]),
    ],
)
def test_membership(networks, inside, outside):
    found = Networks(networks)
    for address in inside * 2:  # the second time from the cache
        assert address in found, address
    for address in outside * 2:
        assert address not in found, address
    assert len(found) == len(networks)


@pytest.mark.parametrize(
    "network", ["", "x", "10.0.0.1/8", "10.0.0.0/33", "::/129", "1.2.3", "UNIX", "01.2.3.4", 7, b"::1"]
)
def test_what_is_no_network_is_refused(network):
    with pytest.raises(ValueError, match="address/bits or unix expected") as refusal:
        Networks([network])
    assert repr(network) in str(refusal.value)


def test_one_text_is_no_sequence_of_networks():
    with pytest.raises(ValueError, match="a sequence"):
        Networks("10.0.0.0/8")


def test_only_text_is_an_address():
    networks = Networks(["0.0.0.0/0", "::/0", "unix"])
    assert b"1.2.3.4" not in networks
    assert None not in networks
    assert 1 not in networks
    assert repr(networks) == "Networks(['0.0.0.0/0', '::/0', 'unix'])"


@pytest.mark.parametrize(
    ("address", "right"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::FFFF:192.0.2.1", "192.0.2.1"),
        ("2001:DB8:0:0:0:0:0:1", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("", ""),
        ("/run/x.sock", ""),
        ("example.org", ""),
        ("1.2.3.4\r\nX: y", ""),
        ("1" * (MAX_TEXT + 1), ""),
    ],
)
def test_canonical_address(address, right):
    assert canonical_address(address) == right


@pytest.mark.parametrize(
    ("node", "address"),
    [
        (b"192.0.2.1", "192.0.2.1"),
        (b" 192.0.2.1\t", "192.0.2.1"),
        (b"192.0.2.1:1", "192.0.2.1"),
        (b"192.0.2.1:65535", "192.0.2.1"),
        (b"192.0.2.1:", None),
        (b"192.0.2.1:123456", None),
        (b"192.0.2.1:x", None),
        (b"192.0.2.1:\xb2", None),
        (b"2001:DB8::1", "2001:db8::1"),
        (b"::ffff:192.0.2.1", "192.0.2.1"),
        (b"[2001:db8::1]", "2001:db8::1"),
        (b"[2001:db8::1]:80", "2001:db8::1"),
        (b"[2001:db8::1]80", None),
        (b"[2001:db8::1]:", None),
        (b"[2001:db8::1", None),
        (b"[192.0.2.1]", None),
        (b"[]", None),
        (b"", None),
        (b":", None),
        (b":80", None),
        (b"unknown", None),
        (b"_hidden", None),
        (b"192.0.2.256", None),
        (b"192.0.2.01", None),
        (b"192.0.2.1 192.0.2.2", None),
        (b"\xff", None),
        (b"192.0.2.1" + b" " * MAX_TEXT, None),
        (b"192.0.2.1" + b" " * (MAX_TEXT - 9), "192.0.2.1"),
    ],
)
def test_node_address(node, address):
    assert node_address(node) == address


@pytest.mark.parametrize(
    ("address", "prefix", "network"),
    [
        ("192.0.2.1", 64, "192.0.2.1"),
        ("::ffff:192.0.2.1", 64, "192.0.2.1"),
        ("2001:db8:0:1:2:3:4:5", 64, "2001:db8:0:1::/64"),
        ("2001:db8:0:1:2:3:4:5", 48, "2001:db8::/48"),
        ("2001:db8::1", 128, "2001:db8::1/128"),
        ("2001:db8::1", 0, "::/0"),
        ("", 64, ""),
        ("x", 64, ""),
    ],
)
def test_network_of(address, prefix, network):
    assert network_of(address, prefix) == network


@given(st.binary(max_size=100))
def test_whatever_comes_is_an_address_or_none(node):
    address = node_address(node)
    if address is not None:
        assert canonical_address(address) == address
        assert node_address(address.encode()) == address


@given(st.ip_addresses(v=4))
def test_a_mapped_address_equals_the_address(address):
    assert canonical_address(f"::ffff:{address}") == str(address)
    assert f"::ffff:{address}" in Networks([str(address)])


@given(st.text(max_size=100))
def test_any_text_may_be_asked_for(text):
    assert (text in Networks(["10.0.0.0/8"])) in (True, False)
    assert (canonical_address(text) == "") == (network_of(text, 64) == "")
