"""The ends of a client's chain: in the process, or over HTTP/JSON or gRPC. They know no message."""
