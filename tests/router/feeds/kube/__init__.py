"""Kubernetes discovery against the API server of tests/kube_api."""
