"""Writes `descriptors.py` from ext_proc.proto: `python -m warmlane.envoy.proto.generate`.

Needs grpcio-tools (extra "test"). The result holds plain descriptors and no generated classes, so
that it fits every protobuf release and never meets the default pool.
"""

from __future__ import annotations

import base64
import sys
import tempfile
import textwrap
from importlib import import_module
from pathlib import Path

HERE = Path(__file__).resolve().parent


def text() -> str:
    """The source of descriptors.py for the .proto beside this file."""
    protoc = import_module("grpc_tools.protoc")
    include = Path(str(protoc.__file__)).parent / "_proto"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set.pb"
        command = ["protoc", f"-I{HERE}", f"-I{include}", "--include_imports"]
        command += [f"--descriptor_set_out={out}", "ext_proc.proto"]
        if protoc.main(command) != 0:
            raise SystemExit("generate: protoc failed")
        packed = base64.b85encode(out.read_bytes()).decode()
    lines = "\n".join(f'    "{line}"' for line in textwrap.wrap(packed, 92))
    return (
        '"""ext_proc.proto as descriptors (FileDescriptorSet, base 85); by generate.py."""\n'
        "\n# fmt: off\n"
        f"SET = (\n{lines}\n)\n"
    )


if __name__ == "__main__":
    (HERE / "descriptors.py").write_text(text())
    sys.stdout.write("descriptors.py is written\n")
