"""greensock.proxy.log: the access log.

The modules, lowest first; each imports only what stands above it:

==========  ==========================================================================================================
record      what is known of one request when it is over
log_lines   what a record looks like in the access log
access_log  the access log, written by a thread
==========  ==========================================================================================================
"""
