"""The test API server against a client that nobody here wrote: kubectl, where it is installed."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from tests.common import until
from tests.kube_api.objects import pod
from tests.kube_api.server import PODS, KubeServer, kubeconfig

KUBECTL = shutil.which("kubectl")
pytestmark = pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")


async def start(server: KubeServer, folder: Path, *words: str) -> asyncio.subprocess.Process:
    assert KUBECTL is not None
    config = folder / "config"
    config.write_text(kubeconfig(server))
    return await asyncio.create_subprocess_exec(
        KUBECTL,
        f"--kubeconfig={config}",
        f"--cache-dir={folder / 'cache'}",
        *words,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"HOME": str(folder), "PATH": "/usr/bin:/bin"},
    )


async def test_kubectl_lists_by_label_in_pages(tmp_path: Path) -> None:
    async with KubeServer() as server:
        server.page_max = 2
        for number in range(5):
            app = "llm" if number % 2 == 0 else "other"
            server.store.put(PODS, pod(f"p{number}", f"10.0.0.{number}", labels={"app": app}))
        words = ("get", "pods", "-l", "app=llm", "--chunk-size=1", "-o", "json")
        process = await start(server, tmp_path, *words)
        async with asyncio.timeout(60):
            output, errors = await process.communicate()
        assert process.returncode == 0, errors.decode()
        names = [each["metadata"]["name"] for each in json.loads(output)["items"]]
        assert names == ["p0", "p2", "p4"]
        assert sum((each.what, each.resource) == ("list", PODS) for each in server.requests) == 3


async def test_kubectl_watches(tmp_path: Path) -> None:
    async with KubeServer() as server:
        server.store.put(PODS, pod("a"))
        words = ("get", "pods", "--watch", "--output-watch-events", "-o", "json")
        process = await start(server, tmp_path, *words)
        assert process.stdout is not None
        try:
            async with asyncio.timeout(60):
                seen = [await event(process.stdout)]
                await until(lambda: server.watching == ["pods"], 30.0)
                server.store.put(PODS, pod("b", "10.0.0.2"))
                seen.append(await event(process.stdout))
                server.store.put(PODS, pod("b", "10.0.0.2", ready=False))
                seen.append(await event(process.stdout))
                server.store.delete(PODS, "b")
                seen.append(await event(process.stdout))
        finally:
            process.kill()
            await process.wait()
        assert seen == [("ADDED", "a"), ("ADDED", "b"), ("MODIFIED", "b"), ("DELETED", "b")]


async def event(stream: asyncio.StreamReader) -> tuple[str, str]:
    """One pretty-printed JSON object of kubectl's output."""
    text = b""
    while True:
        text += await stream.readline()
        try:
            value = json.loads(text)
        except ValueError:
            continue
        return value["type"], value["object"]["metadata"]["name"]
