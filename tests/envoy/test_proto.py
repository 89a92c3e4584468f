"""The committed descriptors are those of the .proto, and live beside anybody else's."""

from __future__ import annotations

from google.protobuf import descriptor_pool

from warmlane.envoy.proto import descriptors, generate, messages


def test_the_descriptors_are_those_of_the_file() -> None:
    written = (generate.HERE / "descriptors.py").read_text()
    assert written == generate.text(), "run python -m warmlane.envoy.proto.generate"
    assert descriptors.SET


def test_the_default_pool_never_hears_of_them() -> None:
    assert messages.ProcessingRequest.DESCRIPTOR.file.pool is messages.POOL
    default = descriptor_pool.Default()
    try:
        default.FindFileByName("ext_proc.proto")
    except KeyError:
        return
    raise AssertionError("registered in the default pool")
