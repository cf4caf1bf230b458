"""A tiny run of the load tests of TLS, so that none rots."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from served import once

from loadtests import tls

pytestmark = [
    pytest.mark.skipif(
        not Path("/usr/include/openssl/ssl.h").exists(), reason="without OpenSSL's headers (libssl-dev of Debian)"
    ),
    once,
]


def test_a_tiny_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        tls, "CASES", {name: tls.LoadCase(case.mode, 4, case.unit, case.key) for name, case in tls.CASES.items()}
    )
    assert tls.main(["--rounds", "1", "--seconds", "0.3", "--output", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found) == list(tls.CASES)
    for name, values in found.items():
        assert list(values) == list(tls.SERVERS)
        assert all(len(value) == 1 and (value[0] > 0 or "idle" in name) for value in values.values())
    assert "handshake, RSA-2048" in capsys.readouterr().out
