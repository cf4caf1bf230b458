"""greensock.http.server: the HTTP/1.1 server.

The modules, lowest first; each imports only what stands above it:

==================  ====================================================================================================
stream              where an answer goes that is not HTTP/1.1 on the connection itself
cookies             what a client sends of them, and the field that sets one
query_fields        the fields of a query
response            an answer as the program gives it
spool               bytes in memory, and then in a file
forms               fields and files that a page sends
request             a request as the program sees it
conditions          whether a file is sent, and what of it
static_files        files and directories as answers
server_sent_events  events that a page hears as they come
route_table         which function answers a method and a path
filters             what changes the body of an answer on its way out
http_stats          what a server counted
deadline_watch      until when heads must be whole, and bodies must go on
response_writer     how an answer goes out
compression         which answers are compressed, and how
switching           the ways out of HTTP: WebSockets, and other protocols
http_server         one request after the other, each answered
==================  ====================================================================================================

The seam for what is built on ``HTTPServer`` (the WSGI server, the proxy, and what is to come), in the order of a
request's life. Programs override the upcalls (``handle_request``, ``filter_for``, ``request_done``,
``request_refused``, ``websocket_open`` and its like) and need none of these:

- ``take_awaited_body``: bytes came of a body that is waited for without a worker;
- ``take_requests``: answer the requests that a parser holds;
- ``refusal_of``: a sound request that is not for the program; ``refuse_request``: one that never became a request;
- ``serve_request``: have the program answer a request, whatever its interface is;
- ``error_response``: the answer to what the program raised;
- ``send_answer``: send a :class:`Response`, to the connection or to ``request.stream``, through the filter there is;
- ``date_line``, ``answers_by_status``: for servers that write answers themselves;
- ``asks_on``: whether more requests have come, which are answered though the server drains;
- ``can_discard_body``, ``end_exchange``: whether the connection goes on behind an answer, and that it does;
- ``cut_off_answer``: end an answer that cannot be finished, so that it is seen;
- ``tell_request_done``, ``log_program_failure``: tell the program, and tell of the program;
- ``written_head``, ``send_piece``, ``send_file_range``: parts of an answer as they go out;
- ``look_at_upcalls``: which upcalls there are, at the start; ``on_filter``, ``on_request_done``: two of them;
- ``allowed_methods``: what Allow says; ``head_watch``: until when heads must be whole;
- ``requests_taken``: how many requests came;
- ``switch``, ``end_switch``: leave HTTP, and what becomes of the connection then; ``detach``, ``upgrade_websocket``,
  ``new_websocket``, ``open_websocket``, ``websocket_ended``: the ways there are; ``takes_websockets``,
  ``on_websocket_message``: what the program has for them.
"""
