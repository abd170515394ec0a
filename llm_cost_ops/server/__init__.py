"""The service's doors: the ASGI app, and the process that serves it."""
