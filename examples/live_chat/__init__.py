"""A chat in the browser over WebSockets: ``python -m examples.live_chat``."""
