"""The gRPC interface: `conserve.proto`, and the stubs that protoc makes of it (`make protos`)."""
