"""greensock.gunicorn: many processes, with gunicorn as what starts, watches and replaces them.

``gunicorn -k greensock.gunicorn.Worker module:application`` serves a WSGI application. gunicorn has to be installed:
``pip install greensock[gunicorn]``. Nothing else of greensock imports this package.

Its parts, lowest first; each imports only what stands above it, and of greensock what it exports, or ``http``:

===============  =====================================================================================================
settings         what gunicorn's settings mean here, and which are refused
told             a request and its answer as gunicorn's hooks and loggers are told of them
wsgi_site        the WSGI server with gunicorn's environ, hooks and access log
introduced_site  the same, where a connection may begin with a PROXY header
shares           how connections are spread over the workers
base_worker      a worker process: its heartbeat, its signals, its end
worker           the worker that serves a WSGI application
server_worker    the worker that serves it
master           the master process: gunicorn's, mended
===============  =====================================================================================================
"""

from greensock.gunicorn.worker import Worker

__all__ = ["Worker"]
