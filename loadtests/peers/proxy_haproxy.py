"""HAProxy as a proxy: one thread, kept connections to the upstream."""

from loadtests.peers.http_common import options
from loadtests.peers.programs import haproxy

FRONTEND = """
frontend proxy
    {bind}
    option forwardfor
    default_backend origin
backend origin
    http-reuse always
    server origin {upstream}
"""

if __name__ == "__main__":
    haproxy(FRONTEND.replace("{upstream}", options().upstream))
