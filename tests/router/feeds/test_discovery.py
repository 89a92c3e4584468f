"""Discovery: a watched file on disk, the system's resolver, and SRV from a real DNS server."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import cast

import dns.asyncresolver
import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from tests.common import until
from warmlane.router.config import Discovery
from warmlane.router.feeds.discovery import (
    AddressSource,
    FileSource,
    LookupFailed,
    SrvSource,
    Watch,
    sources,
)
from warmlane.router.metrics import Metrics
from warmlane.router.types import ReplicaSpec


def urls(found: Sequence[ReplicaSpec] | None) -> list[str] | None:
    return None if found is None else [spec.url for spec in found]


class TestFile:
    @pytest.mark.parametrize(
        "text",
        [
            "- http://10.0.0.1:8000\n- url: http://10.0.0.2:8000\n  zone: a\n",
            '["http://10.0.0.1:8000", {"url": "http://10.0.0.2:8000", "zone": "a"}]',
            "replicas:\n- http://10.0.0.1:8000\n- {url: http://10.0.0.2:8000, zone: a}\n",
        ],
        ids=["yaml", "json", "mapping"],
    )
    async def test_forms(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "replicas"
        path.write_text(text)
        found = await FileSource(str(path)).look()
        assert urls(found) == ["http://10.0.0.1:8000", "http://10.0.0.2:8000"]
        assert found is not None
        assert found[1].zone == "a"

    async def test_read_again_only_when_changed(self, tmp_path: Path) -> None:
        path = tmp_path / "replicas.yaml"
        path.write_text("- http://a:1\n")
        source = FileSource(str(path))
        assert urls(await source.look()) == ["http://a:1"]
        assert await source.look() is None
        other = tmp_path / "new"  # swapped in whole, as a config map is
        other.write_text("- http://b:1\n")
        other.replace(path)
        assert urls(await source.look()) == ["http://b:1"]
        path.write_text("[]\n")
        assert await source.look() == []

    @pytest.mark.parametrize(
        "text", ["", "{}", "- http://a:1/path", "- {url: x, colour: red}", "[", "7", "- - a"]
    )
    async def test_a_bad_file_is_no_list(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "replicas.yaml"
        path.write_text(text)
        with pytest.raises(LookupFailed, match=r"replicas\.yaml"):
            await FileSource(str(path)).look()

    async def test_a_missing_file_that_comes_later(self, tmp_path: Path) -> None:
        path = tmp_path / "replicas.yaml"
        source = FileSource(str(path))
        with pytest.raises(LookupFailed):
            await source.look()
        path.write_text("- http://a:1\n")
        assert urls(await source.look()) == ["http://a:1"]


class TestAddresses:
    async def test_localhost(self) -> None:
        found = urls(await AddressSource("localhost", 8000, "https").look())
        assert found is not None
        assert "https://127.0.0.1:8000" in found
        assert len(found) == len(set(found))

    async def test_a_v6_address_is_bracketed(self) -> None:
        assert urls(await AddressSource("::1", 8000, "http").look()) == ["http://[::1]:8000"]

    @pytest.mark.parametrize("host", ["a..b", "x" * 300])
    async def test_failure(self, host: str) -> None:
        with pytest.raises(LookupFailed):
            await AddressSource(host, 8000, "http").look()


class NameServer(asyncio.DatagramProtocol):
    """A real DNS server on loopback for one zone of SRV records."""

    def __init__(self) -> None:
        self.records: dict[str, list[str]] = {}
        self.rcode = dns.rcode.NOERROR
        self.transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.RA
        answer.set_rcode(self.rcode)
        name = query.question[0].name
        lines = self.records.get(name.to_text(omit_final_dot=True))
        if self.rcode == dns.rcode.NOERROR and lines is None:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        elif lines:
            answer.answer.append(dns.rrset.from_text_list(name, 1, "IN", "SRV", lines))
        assert self.transport is not None
        self.transport.sendto(answer.to_wire(), addr)


@pytest.fixture
async def server() -> AsyncIterator[NameServer]:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(
        NameServer, local_addr=("127.0.0.1", 0)
    )
    yield protocol
    transport.close()


def srv(server: NameServer, name: str = "_http._tcp.llm.test") -> SrvSource:
    resolver = dns.asyncresolver.Resolver(configure=False)
    resolver.nameservers = ["127.0.0.1"]
    assert server.transport is not None
    resolver.port = server.transport.get_extra_info("sockname")[1]
    return SrvSource(name, "http", resolver)


class TestSrv:
    async def test_records_become_replicas(self, server: NameServer) -> None:
        server.records["_http._tcp.llm.test"] = [
            "0 1 8000 pod-1.llm.test.",
            "0 5 8001 pod-0.llm.test.",
            "10 1 8000 spare.llm.test.",
        ]
        found = await srv(server).look()
        assert urls(found) == ["http://pod-0.llm.test:8001", "http://pod-1.llm.test:8000"]

    async def test_a_target_of_a_dot_is_no_service(self, server: NameServer) -> None:
        server.records["_http._tcp.llm.test"] = ["0 0 0 ."]
        with pytest.raises(LookupFailed, match="no target"):
            await srv(server).look()

    async def test_no_such_name(self, server: NameServer) -> None:
        with pytest.raises(LookupFailed, match=r"llm\.test"):
            await srv(server).look()

    async def test_an_empty_answer(self, server: NameServer) -> None:
        server.records["_http._tcp.llm.test"] = []
        with pytest.raises(LookupFailed):
            await srv(server).look()

    async def test_a_broken_server(self, server: NameServer) -> None:
        server.rcode = dns.rcode.REFUSED
        with pytest.raises(LookupFailed):
            await srv(server).look()


class TestWatch:
    async def test_a_failing_source_keeps_the_list_and_says_so_once(
        self, server: NameServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO", "warmlane.feeds")
        got: list[list[str] | None] = []
        metrics = Metrics()
        watch = Watch("p", srv(server), 9.0, metrics, lambda kind, found: got.append(urls(found)))
        server.records["_http._tcp.llm.test"] = ["0 0 80 a."]
        await watch.once()
        server.rcode = dns.rcode.REFUSED
        await watch.once()
        watch.source._resolver.cache = None  # type: ignore[attr-defined]
        await watch.once()
        server.rcode = dns.rcode.NOERROR
        server.records["_http._tcp.llm.test"] = ["0 0 80 a.", "0 0 80 b."]
        await watch.once()
        assert got == [["http://a:80"], ["http://a:80", "http://b:80"]]
        assert metrics.counts["warmlane_discovery_failures_total"] == {("p", "srv"): 2}
        assert [record.getMessage().split()[0] for record in caplog.records] == [
            "event=discovery_failed",
            "event=discovery_recovered",
        ]

    async def test_run_follows_a_file(self, tmp_path: Path) -> None:
        path = tmp_path / "replicas.yaml"
        path.write_text("- http://a:1\n")
        got: list[list[str] | None] = []
        watch = Watch(
            "p",
            FileSource(str(path)),
            0.01,
            Metrics(),
            lambda kind, found: got.append(urls(found)),
        )
        task = asyncio.create_task(watch.run())
        await until(lambda: got == [["http://a:1"]])
        path.write_text("- http://a:1\n- http://b:1\n")
        os.utime(path, ns=(1, 1))
        await until(lambda: got[-1] == ["http://a:1", "http://b:1"])
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_a_config_names_its_sources() -> None:
    config = Discovery(file="f", dns="d", srv="s")
    assert [source.kind for source in sources(config)] == ["file", "dns", "srv"]
    assert sources(Discovery()) == []
