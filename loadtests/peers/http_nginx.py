"""nginx as an origin: the small answer from its configuration, the others from files. It takes no upload."""

from pathlib import Path

from loadtests.peers.http_common import BLOCK, SMALL, blocks, options
from loadtests.peers.programs import nginx

SERVER = """
    default_type text/plain;
    server {
        {listen}
        root {directory};
        location = /small { return 200 "{small}"; }
    }
"""


def configure(directory: Path) -> str:
    (directory / "large").write_bytes(BLOCK)
    (directory / "stream").mkdir()
    long = options().long
    with (directory / "stream" / str(long)).open("wb") as file:
        file.writelines(blocks(long))
    small = SMALL.decode().replace("\n", "\\n")
    return SERVER.replace("{directory}", str(directory)).replace("{small}", small)


if __name__ == "__main__":
    nginx(configure)
