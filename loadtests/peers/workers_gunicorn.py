"""gunicorn with one worker of greensock's; the rest as that with gevent's."""

from loadtests.peers.http_gunicorn import run

if __name__ == "__main__":
    run("greensock.gunicorn.Worker")
