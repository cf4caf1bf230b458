"""greensock.operations: what operators see of a server, and tell it.

The layers, lowest first; each imports only what stands above it:

================  ====================================================================================================
status_page       the page for browsers: three files
status_reading    what /status.json says, and what two of them say together (no I/O)
operators_client  asks an operators' address
server_orders     a server is drained, or put back
top_report        what ``greensock top`` shows, as lines (no I/O)
top               ``greensock top``: live in a terminal
commands          the commands that ask a running server
================  ====================================================================================================
"""
