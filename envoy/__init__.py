"""The Envoy face: endpoint picking over external processing; docs/ext_proc.md."""
