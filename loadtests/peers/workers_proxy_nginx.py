"""nginx as a proxy in many processes: as many connections in each as there are descriptors.

Its workers accept in turns (``accept_mutex``): else the one that is woken first has all it may before the others get
any. (What answers by itself fills one of them all the same, faster than it lets go, and closes connections that rest.)
"""

from loadtests.peers.http_common import options
from loadtests.peers.programs import nginx
from loadtests.peers.proxy_nginx import SERVER

EVENTS = "worker_connections 19900; accept_mutex on; accept_mutex_delay 10ms;"
REST = "keepalive_timeout 1h;"

if __name__ == "__main__":
    nginx(lambda directory: REST + SERVER.replace("{upstream}", options().upstream), events=EVENTS)
