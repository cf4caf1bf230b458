"""HAProxy as an origin: the small answer, from its configuration. It has no other."""

from loadtests.peers.http_common import SMALL
from loadtests.peers.programs import haproxy

FRONTEND = """
frontend origin
    {bind}
    http-request return status 200 content-type text/plain string "{small}"
"""

if __name__ == "__main__":
    haproxy(FRONTEND.replace("{small}", SMALL.decode().replace("\n", "\\n")))
