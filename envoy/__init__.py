"""The Envoy ext_proc face. It is not built yet; the standalone proxy and the library are."""
