"""Message classes of ext_proc.proto in a descriptor pool of their own.

The pool is private: Envoy's own Python stubs register the same kinds of messages in the default
pool, and two registrations of one file there are an error. Needs protobuf; the router does not.
"""

from __future__ import annotations

import base64
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from warmlane.envoy.proto.descriptors import SET

_PACKAGE: Final = "warmlane.wire"


def _load() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(base64.b85decode(SET)).file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


POOL: Final = _load()


def _class(name: str) -> Any:
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


ProcessingRequest: Final = _class("ProcessingRequest")
ProcessingResponse: Final = _class("ProcessingResponse")
ProcessingMode: Final = _class("ProcessingMode")
ProtocolConfiguration: Final = _class("ProtocolConfiguration")
HeaderMutation: Final = _class("HeaderMutation")
HealthCheckRequest: Final = _class("HealthCheckRequest")
HealthCheckResponse: Final = _class("HealthCheckResponse")
HealthListResponse: Final = _class("HealthListResponse")
