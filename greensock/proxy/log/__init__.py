"""greensock.proxy.log: the access log, and the error log.

The modules, lowest first; each imports only what stands above it:

===========  =========================================================================================================
targets      where lines can go: files, standard output and error, syslog
record       what is known of one request when it is over
log_lines    what a record looks like in the access log
line_format  the same in a format of one's own
access_log   the access log, written by a thread
error_log    the error log: a handler of the standard library's logging
===========  =========================================================================================================
"""
