"""greensock's HTTPClient: a download and an upload, and the most memory they took, as JSON."""

from gevent import monkey

monkey.patch_all()

import argparse
import json
import time

from greensock.http import HTTPClient
from loadtests.peers.http_common import BLOCK, blocks, verify
from loadtests.process import peak_memory


def download(client: HTTPClient, url: str, number: int) -> bytes:
    with client.get(f"{url}/stream/{number}") as answer:
        return verify(answer)


def upload(client: HTTPClient, url: str, number: int) -> bytes:
    length = {"Content-Length": str(number * len(BLOCK))}
    with client.post(f"{url}/verify", body=blocks(number), headers=length) as answer:
        return answer.read_all()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("way", choices=("download", "upload"))
    parser.add_argument("address")
    parser.add_argument("--warmup", type=int, default=16, help="blocks")
    parser.add_argument("--blocks", type=int, default=64)
    options = parser.parse_args()
    transfer, url = {"download": download, "upload": upload}[options.way], f"http://{options.address}"
    with HTTPClient() as client:
        right = transfer(client, url, options.warmup) == b"%d" % (options.warmup * len(BLOCK))
        before, began = peak_memory("self"), time.monotonic()
        right = transfer(client, url, options.blocks) == b"%d" % (options.blocks * len(BLOCK)) and right
        seconds = time.monotonic() - began
    print(json.dumps({"right": right, "seconds": seconds, "before": before, "after": peak_memory("self")}))


if __name__ == "__main__":
    main()
