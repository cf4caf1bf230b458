"""greensock.operations: what operators see of a server, and tell it.

The layers, lowest first; each imports only what stands above it:

==================  ==================================================================================================
operations_options  what the operators' address is told
figures             numbers with names, in memory that all workers share
histograms          how many took how long
last_requests       the slowest and the failed of the last requests
hub_watchdog        logs what holds the hub
worker_watch        what one worker counts
status_report       what any worker can say of all
exposition          ``/metrics``
status_page         the page for browsers: three files
operations_server   the operators' address
status_reading      what /status.json says, and what two of them say together (no I/O)
operators_client    asks an operators' address
server_orders       a server is drained, put back, added or removed
top_report          what ``greensock top`` shows, as lines (no I/O)
top                 ``greensock top``: live in a terminal
commands            the commands that ask a running server
==================  ==================================================================================================
"""
