"""Envoy's messages by the protobuf library, for tests and the conformance suite alone."""
