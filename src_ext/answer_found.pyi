"""The compiled module has no Python face; its C face is in answer_found.pxd."""
