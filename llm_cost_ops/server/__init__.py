"""The service's listeners: the ASGI app, and the process that serves it."""
