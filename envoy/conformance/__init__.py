"""A black-box suite for endpoint pickers: a gRPC client that plays Envoy, and what it expects.

`warmlane epp-conformance HOST:PORT` runs it against any picker; docs/conformance.md has the cases.
Nothing here knows how warmlane's own picker works.
"""
