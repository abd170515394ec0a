"""What HTTP and gRPC share: connecting, TLS, headers and bodies."""
