"""uvloop, asyncio's streams on it."""

import uvloop

from loadtests.peers import common
from loadtests.peers.asyncio_streams import serve

if __name__ == "__main__":
    uvloop.run(serve(common.options()))
