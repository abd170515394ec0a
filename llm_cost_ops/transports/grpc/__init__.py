"""gRPC on grpclib's HTTP/2."""
