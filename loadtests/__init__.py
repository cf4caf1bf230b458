"""greensock measured against its peers; README.md says how, and what came out.

native            compiles the C files on first use
generator         runs the traffic generator and types its result
servers           the servers compared: their names and what they need
peers/            their programs, a short file each
process           starts a server pinned to a core; its CPU time and memory
measure           one measurement of one server
wrk               runs wrk and types its result
http_load         runs the open-loop generator for HTTP
transfer          one HTTP request, every byte of its answer checked
measure_tls       one measurement of one server over TLS
measure_http      one measurement of one HTTP server, client or proxy
workers           starts servers of many processes; what these hold
held              many connections held open at once
reload            a server that is reloaded under load
herd              what many workers on one listener cost
plan              what an experiment is: cases, and how much of them
http_experiments  those with HTTP: ``http`` and ``proxy``
locust_experiments  that with users for Locust: ``locust``
tls_flood         a flood of handshakes, and what others notice of it
tls_experiments   those with TLS: ``tls`` and ``handshakes``
workers_experiments  those with many processes: ``held``, ``reload`` and ``herd``
experiments       which cases, which servers, how often
figures           what greensock aims at, and whether it is reached
machine           what it was measured on
progress          the live display
results           the JSON files that experiments write
bench             runs experiments: ``python -m loadtests.bench NAME``
looks             how servers look in charts
plots             draws them: ``python -m loadtests.plots``
tables            puts them into tables, and these into the documents: ``python -m loadtests.tables``
seed              the workload of the seed's experiments: ``make run``
load              Locust's users, of locustfile_tcp and locustfile_http: ``make load``
load_origin       what is behind the proxy for these users
locust_pages      what it answers and they expect
websocket         frames of WebSocket
arguments         what command lines check in the same way
"""
