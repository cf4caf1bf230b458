"""Half a minute of what ``make soak`` does for long: no request is lost while processes come and go."""

from __future__ import annotations

import pytest
from promise import play, told
from served import once

pytestmark = once


@pytest.mark.parametrize("kind", ["gunicorn", "greensock"])
def test_no_request_is_lost(tmp_path, kind):
    load = play(kind, tmp_path, requests=1000, seconds=0.0)
    assert not load.broken(), told(kind, load)
    assert all(load.answered[name] > 20 for name in ("fresh", "often", "seldom"))
    assert load.killed
