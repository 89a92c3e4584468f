"""gRPC over HTTP/2 for the endpoint picker, in C over libnghttp2. See README.md in this folder.

The one optional part of the core: `warmlane._core.h2.connection` is there where libnghttp2 and its
header were present at build time. Who uses it imports it and must bear an ImportError.
"""
