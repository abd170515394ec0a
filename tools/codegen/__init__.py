"""The code generator: a protoc plugin that writes `_gen`. It imports nothing of the package."""
