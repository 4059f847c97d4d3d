"""The gRPC ranking service, its client and replay."""
