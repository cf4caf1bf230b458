"""gunicorn with one gevent worker. The worker patches."""

import os
from typing import Any

from gunicorn.app.base import BaseApplication

from loadtests.peers import common, http_common


class Application(BaseApplication):  # type: ignore[misc]
    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        super().__init__()

    def load_config(self) -> None:
        for name, value in self.settings.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        return http_common.wsgi_app


def run(worker: str) -> None:
    """Serve with one worker of this kind."""
    sock = http_common.listener(http_common.options())
    os.set_inheritable(sock.fileno(), True)
    common.announce(sock)
    Application(
        {
            "bind": f"fd://{sock.detach()}",
            "worker_class": worker,
            "workers": 1,
            "backlog": common.BACKLOG,
            "loglevel": "warning",
            "graceful_timeout": 1,
        }
    ).run()


if __name__ == "__main__":
    run("gevent")
