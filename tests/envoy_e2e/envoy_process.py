"""A running Envoy: one worker, ports of its own, its admin interface for readiness and counters."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

from .client import Ask, Http1
from .config import Tree
from .install import envoy_binary

READY_S = 90.0


class Envoy:
    """`await start()`, `ports`, `await stat(name)`, `await stop()`."""

    def __init__(self, tree: Tree, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "envoy.log"
        self.ports: dict[str, int] = {}
        self._config = folder / "envoy.json"
        self._address = folder / "admin"
        self._config.write_text(json.dumps(tree))
        self._process: subprocess.Popen[bytes] | None = None
        self._admin = 0

    async def start(self) -> None:
        self._process = self._spawn(await asyncio.to_thread(envoy_binary))
        try:
            await asyncio.wait_for(self._ready(), READY_S)
        except BaseException:
            await self.stop()
            raise
        listing = json.loads(await self.admin("/listeners?format=json"))
        for each in listing["listener_statuses"]:
            self.ports[each["name"]] = each["local_address"]["socket_address"]["port_value"]

    def _spawn(self, binary: Path) -> subprocess.Popen[bytes]:
        command = [str(binary), "-c", str(self._config), "--concurrency", "1", "-l", "warning"]
        command += ["--disable-hot-restart", "--admin-address-path", str(self._address)]
        command += ["--log-path", str(self.log)]
        with (self.folder / "stderr").open("wb") as err:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=err
            )

    async def _ready(self) -> None:
        while True:
            assert self._process is not None
            if self._process.poll() is not None:
                raise RuntimeError(f"Envoy ended: {self.said()}")
            if self._address.exists() and ":" in (text := self._address.read_text()):
                self._admin = int(text.rpartition(":")[2])
                if "LIVE" in await self.admin("/ready"):
                    return
            await asyncio.sleep(0.02)

    def said(self) -> str:
        """The end of its log."""
        parts = [self.log, self.folder / "stderr"]
        return "\n".join(p.read_text(errors="replace")[-2000:] for p in parts if p.exists())

    async def admin(self, path: str, method: str = "GET") -> str:
        """One answer of the admin interface."""
        peer = await Http1.connect(self._admin)
        answer = await peer.ask(Ask(path=path, method=method))
        peer.close()
        return answer.body.decode()

    async def stat(self, name: str) -> int:
        """A counter or gauge by its whole name; 0 when Envoy does not have it yet."""
        text = await self.admin(f"/stats?usedonly&filter=^{re.escape(name)}$")
        return int(text.rpartition(":")[2]) if ":" in text else 0

    async def config_dump(self) -> Any:
        return json.loads(await self.admin("/config_dump"))

    async def stop(self) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.to_thread(process.wait, 10)
            except subprocess.TimeoutExpired:
                process.kill()
                await asyncio.to_thread(process.wait, 10)
