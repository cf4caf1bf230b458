"""nginx as a proxy, with its access log in the combined format, in a file."""

from pathlib import Path

from loadtests.peers.http_common import options
from loadtests.peers.programs import nginx
from loadtests.peers.proxy_nginx import SERVER


def configure(directory: Path) -> str:
    log = f"access_log {directory}/access.log combined;\n            "
    return SERVER.replace("{upstream}", options().upstream).replace("proxy_pass ", f"{log}proxy_pass ")


if __name__ == "__main__":
    nginx(configure)
