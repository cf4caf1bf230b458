"""nginx as a proxy in many processes; see ``workers_nginx``."""

from loadtests.peers.http_common import options
from loadtests.peers.programs import nginx
from loadtests.peers.proxy_nginx import SERVER
from loadtests.peers.workers_nginx import EVENTS, REST

if __name__ == "__main__":
    nginx(lambda directory: REST + SERVER.replace("{upstream}", options().upstream), events=EVENTS)
