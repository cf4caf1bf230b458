"""uvloop, its DatagramProtocol: the same program as asyncio's, run by uvloop."""

import uvloop

from loadtests.peers import common
from loadtests.peers.udp_asyncio import serve

if __name__ == "__main__":
    uvloop.run(serve(common.options()))
