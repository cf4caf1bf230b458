"""nginx in many processes: as many connections in each as there are descriptors.

Its workers accept in turns (``accept_mutex``): else the one that is woken first has all it may before the others get
any, and closes what is more.
"""

from loadtests.peers.http_nginx import configure
from loadtests.peers.programs import nginx

EVENTS = "worker_connections 19900; accept_mutex on; accept_mutex_delay 10ms;"
REST = "keepalive_timeout 1h;"

if __name__ == "__main__":
    nginx(lambda directory: REST + configure(directory), events=EVENTS)
