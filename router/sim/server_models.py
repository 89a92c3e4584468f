"""Base model and LoRA adapters that the fake engine serves."""

from __future__ import annotations

import time
from typing import Any

from warmlane.router.sim.server_jobs import Refusal


class Models:
    """Which names are served; adapters can be loaded and unloaded while it runs."""

    def __init__(
        self, base: str, adapters: list[str], max_model_len: int, *, lora: bool, root: str = ""
    ) -> None:
        """root: adapters are found below it alone; "": everywhere."""
        self.base = base
        self.root = root
        self.loads = 0  # that succeeded
        self.max_model_len = max_model_len
        self.lora = lora
        self.adapters = {name: f"./{name}" for name in adapters}
        self._created = int(time.time())

    def adapter_of(self, model: Any) -> str:
        """ "" for the base model (or no model), else the adapter's name. Refusal 404: unknown."""
        if model is None or model == self.base:
            return ""
        if isinstance(model, str) and model in self.adapters:
            return model
        text = f"The model `{model}` does not exist. Valid aliases: {self.base}."
        raise Refusal(404, text, "NotFoundError", "model")

    def check_load(self, name: Any, path: Any) -> None:
        """Raises Refusal where a load with these arguments cannot begin."""
        if not self.lora:
            raise Refusal(404, "LoRA is not enabled", "NotFoundError")
        if not isinstance(name, str) or not name or not isinstance(path, str) or not path:
            text = "Both 'lora_name' and 'lora_path' must be provided."
            raise Refusal(400, text, "InvalidUserInput")
        if name in self.adapters:
            text = f"The lora adapter '{name}' has already been loaded."
            raise Refusal(400, text, "InvalidUserInput")
        if not path.startswith(self.root):
            text = f"Loading lora {name} failed: No adapter found for {path}"
            raise Refusal(404, text, "NotFoundError")

    def load(self, name: Any, path: Any) -> None:
        self.check_load(name, path)
        self.adapters[name] = path
        self.loads += 1

    def unload(self, name: Any) -> None:
        if self.adapters.pop(name, None) is None:
            raise Refusal(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")

    def listing(self) -> dict[str, Any]:
        """GET /v1/models."""
        data = [self._entry(self.base, self.base, None, self.max_model_len)]
        data += [self._entry(name, path, self.base, None) for name, path in self.adapters.items()]
        return {"object": "list", "data": data}

    def _entry(
        self, name: str, root: str, parent: str | None, max_model_len: int | None
    ) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "vllm",
            "root": root,
            "parent": parent,
            "max_model_len": max_model_len,
            "permission": [],
        }
