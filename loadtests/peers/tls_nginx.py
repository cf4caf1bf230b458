"""nginx over TLS: a small answer, from its configuration."""

import os
from pathlib import Path

from loadtests.peers.http_common import SMALL
from loadtests.peers.programs import nginx

SERVER = """
    default_type text/plain;
    ssl_session_cache shared:one:1m;
    server {
        {listen}
        ssl_certificate {cert};
        ssl_certificate_key {key};
        location = /small { return 200 "{small}"; }
    }
"""


def configure(directory: Path) -> str:
    small = SMALL.decode().replace("\n", "\\n")
    cert, key = os.environ["GREENSOCK_CERT"], os.environ["GREENSOCK_KEY"]
    return SERVER.replace("{small}", small).replace("{cert}", cert).replace("{key}", key)


if __name__ == "__main__":
    nginx(configure, ssl=True)
