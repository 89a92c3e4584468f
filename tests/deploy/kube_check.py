"""Judge Kubernetes objects by their schemas: the published ones, and `crds.yaml` for the rest.

Run by the Python of `.venvs/kube`: `python kube_check.py VERSION CRDS < objects.json` prints a JSON
list with one complaint per object (empty: none). Kubernetes' own kinds are judged strictly, so an
unknown field is an error, by the schemas in the PyPI package `kubernetes-validate`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml


def complaint(each: dict[str, Any], version: str, crds: dict[str, Any]) -> str:
    kind = f"{each['apiVersion']}/{each['kind']}"
    spec = crds["kinds"].get(kind)
    try:
        if spec is None:
            kubernetes_validate.validate(each, version, strict=True)
            return ""
        schema = {
            "definitions": crds["definitions"],
            "additionalProperties": False,
            "required": ["apiVersion", "kind", "metadata", "spec"],
            "properties": {
                "apiVersion": {},
                "kind": {},
                "metadata": {"$ref": "#/definitions/metadata"},
                "spec": {"type": "object", **spec},
            },
        }
        jsonschema.Draft7Validator.check_schema(schema)
        jsonschema.validate(each, schema, jsonschema.Draft7Validator)
    except jsonschema.ValidationError as error:
        where = "/".join(map(str, error.absolute_path))
        return f"{kind} {each['metadata'].get('name')}: {where}: {error.message}"
    except (
        kubernetes_validate.SchemaNotFoundError,
        kubernetes_validate.InvalidSchemaError,
        kubernetes_validate.ValidationError,
    ) as error:
        return f"{kind} {each['metadata'].get('name')}: {error}"
    return ""


def main(version: str, crds: str) -> int:
    known = yaml.safe_load(Path(crds).read_text())
    json.dump([complaint(each, version, known) for each in json.load(sys.stdin)], sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
