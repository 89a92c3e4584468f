"""A small Kubernetes API server for tests: the real watch protocol, with faults."""
