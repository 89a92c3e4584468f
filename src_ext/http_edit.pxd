"""A head that `http_head` has accepted, as the bytes for the other side of the proxy.

The bytes pass as they came and in order, except for lines that end at this hop, and Host and the
framing where they must change. What is changed stands at `request_bytes` and `response_bytes`;
nothing here is called from other compiled modules.
"""
