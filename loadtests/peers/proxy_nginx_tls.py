"""nginx as a proxy, over TLS with its clients."""

import os
from pathlib import Path

from loadtests.peers.http_common import options
from loadtests.peers.programs import nginx
from loadtests.peers.proxy_nginx import SERVER

OF_TLS = """
        ssl_session_cache shared:one:1m;
        ssl_certificate {cert};
        ssl_certificate_key {key};
        location / {"""


def configure(directory: Path) -> str:
    of_tls = OF_TLS.replace("{cert}", os.environ["GREENSOCK_CERT"]).replace("{key}", os.environ["GREENSOCK_KEY"])
    return SERVER.replace("\n        location / {", of_tls).replace("{upstream}", options().upstream)


if __name__ == "__main__":
    nginx(configure, ssl=True)
