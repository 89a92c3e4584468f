"""List and watch under faults: resume, bookmarks, 410, cut lines, throttling, refused tokens."""

from __future__ import annotations

import asyncio

import pytest

from tests.common import until
from tests.kube_api.objects import pod
from tests.kube_api.server import PODS, Asked, KubeServer, Refusal
from tests.router.feeds.kube.rig import QUICK, PlainAccess, Rig, follow
from warmlane.router.feeds.kube_api import KubeApi
from warmlane.router.feeds.kube_objects import Pod
from warmlane.router.feeds.kube_watch import MAX_OBJECTS, Follower
from warmlane.router.metrics import Metrics

SELECTED = {"selector": "app=llm", "ports": [80]}


def asked(server: KubeServer, what: str) -> list[Asked]:
    return [each for each in server.requests if each.what == what]


async def settled(server: KubeServer, rig: Rig, *ips: str) -> None:
    await until(lambda: rig.ready == {f"{ip}:80" for ip in ips} and server.watching == ["pods"])


async def test_a_watch_resumes_where_it_was_cut() -> None:
    async with KubeServer() as server, follow(server, **SELECTED) as rig:
        await settled(server, rig)
        for round_ in range(5):
            ip = f"10.0.0.{round_}"
            server.store.put(PODS, pod(f"p{round_}", ip))
            await until(lambda ip=ip: f"{ip}:80" in rig.ready)  # type: ignore[misc]
            server.drop_watches()
            server.store.put(PODS, pod(f"q{round_}", f"10.0.1.{round_}"))  # while nobody listens
            await until(lambda n=round_: f"10.0.1.{n}:80" in rig.ready)  # type: ignore[misc]
        assert len(asked(server, "list")) == 1  # everything else came by resumed watches
        versions = [each.query["resourceVersion"] for each in asked(server, "watch")]
        assert len(versions) == len(set(versions)) > 5


async def test_a_watch_that_ends_in_good_order_is_opened_again_at_once() -> None:
    async with KubeServer() as server, follow(server, **SELECTED) as rig:
        server.store.put(PODS, pod("a"))
        await settled(server, rig, "10.0.0.1")
        server.bookmark()
        await until(lambda: rig.count("events", "p", "pods", "bookmark") == 1)
        server.end_watches()
        await until(lambda: len(asked(server, "watch")) == 2)
        assert rig.count("failures") == 0


async def test_a_bookmark_moves_the_version_past_what_the_history_forgot() -> None:
    async with KubeServer() as server, follow(server, **SELECTED) as rig:
        server.store.put(PODS, pod("a"))
        await settled(server, rig, "10.0.0.1")
        for number in range(20):
            server.store.put(PODS, pod(f"other{number}", labels={"app": "other"}))
        server.bookmark()
        await until(lambda: rig.count("events", "p", "pods", "bookmark") == 1)
        server.store.compact()
        server.drop_watches()
        server.store.put(PODS, pod("b", "10.0.0.2"))
        await settled(server, rig, "10.0.0.1", "10.0.0.2")
        assert len(asked(server, "list")) == 1


@pytest.mark.parametrize("on_request", [True, False])
async def test_410_lists_again(on_request: bool) -> None:
    async with KubeServer() as server, follow(server, **SELECTED) as rig:
        server.gone_on_request = on_request
        server.store.put(PODS, pod("a"))
        server.store.put(PODS, pod("b", "10.0.0.2"))
        await settled(server, rig, "10.0.0.1", "10.0.0.2")
        server.frozen = True
        server.store.delete(PODS, "a")
        server.store.compact()  # the deletion can be learned from a list alone
        server.drop_watches()
        server.frozen = False
        await settled(server, rig, "10.0.0.2")
        assert rig.members == {"10.0.0.2:80"}
        assert len(asked(server, "list")) == 2
        assert rig.count("failures", "p", "pods", "expired") == 1


async def test_a_server_that_answers_every_watch_with_410_is_not_flooded() -> None:
    async with KubeServer() as server:
        gone = Refusal(410, "Expired", {})
        server.refuse = lambda each: gone if each.what == "watch" else None
        async with follow(server, **SELECTED) as rig:
            await until(lambda: rig.count("failures", "p", "pods", "expired") >= 8)
            # 0 + 2 + 4 + 8 + 16 + 20 ... ms at least half: not one round a millisecond.
            assert rig.feed._pods is not None and rig.feed._pods._failures >= 8
            server.refuse = None
            server.store.put(PODS, pod("a"))
            await settled(server, rig, "10.0.0.1")


@pytest.mark.parametrize("wrong_chunks", [False, True])
async def test_half_a_line_is_no_event(wrong_chunks: bool) -> None:
    async with KubeServer() as server, follow(server, **SELECTED) as rig:
        server.half_line, server.wrong_chunks = True, wrong_chunks
        server.store.put(PODS, pod("a"))
        await settled(server, rig, "10.0.0.1")
        server.drop_watches()
        server.store.put(PODS, pod("b", "10.0.0.2"))
        await settled(server, rig, "10.0.0.1", "10.0.0.2")
        assert rig.count("failures", "p", "pods", "unreadable") == 0


async def test_bytes_that_trickle() -> None:
    async with KubeServer() as server, follow(server, **SELECTED) as rig:
        server.byte_by_byte = True
        for number in range(1, 6):
            server.store.put(PODS, pod(f"p{number}", f"10.0.0.{number}"))
        await settled(server, rig, *(f"10.0.0.{n}" for n in range(1, 6)))


@pytest.mark.parametrize(
    "line",
    [
        b"not json\n",
        b'{"type":"ADDED"}\n',
        b'{"type":"ADDED","object":[]}\n',
        b'{"type":"ERROR","object":{"kind":"Status","code":500,"message":"boom"}}\n',
        b'{"type":"ERROR","object":{}}\n',
    ],
)
async def test_garbage_ends_the_watch_and_harms_nothing(line: bytes) -> None:
    async with KubeServer() as server, follow(server, **SELECTED) as rig:
        server.store.put(PODS, pod("a"))
        await settled(server, rig, "10.0.0.1")
        server.inject(line)
        await until(lambda: rig.count("failures") == 1)
        server.store.put(PODS, pod("b", "10.0.0.2"))
        await settled(server, rig, "10.0.0.1", "10.0.0.2")


async def test_what_is_strange_but_no_error_is_skipped() -> None:
    unreadable = b'{"type":"ADDED","object":{"metadata":{"name":"x","labels":7}}}\n'
    odd_pod = b'{"type":"ADDED","object":{"metadata":{"name":"x"},"status":{"podIP":5}}}\n'
    unknown = b'{"type":"NEWS","object":{"metadata":{"name":"x"}}}\n'
    async with KubeServer() as server, follow(server, **SELECTED) as rig:
        server.store.put(PODS, pod("a"))
        await settled(server, rig, "10.0.0.1")
        server.inject(b"\n" + odd_pod + unknown)
        await until(lambda: rig.count("events", "p", "pods", "other") == 1)
        assert rig.count("failures", "p", "pods", "unreadable") == 1
        assert len(asked(server, "watch")) == 1  # the same watch goes on
        server.inject(unreadable)
        await until(lambda: len(asked(server, "watch")) == 2)
        assert rig.ready == {"10.0.0.1:80"}


async def test_throttling_is_obeyed() -> None:
    async with KubeServer() as server:
        server.throttle(3, 0)
        server.store.put(PODS, pod("a"))
        async with follow(server, **SELECTED) as rig:
            await settled(server, rig, "10.0.0.1")
            assert rig.count("failures", "p", "pods", "throttled") == 3


async def test_retry_after_is_waited_for() -> None:
    async with KubeServer() as server:
        server.throttle(1, 3600)
        async with KubeApi(PlainAccess(server.url)) as api:
            follower = Follower(
                api, "pods", ["/api/v1/pods"], Pod, pool="p", metrics=Metrics(),
                on_change=lambda: None, delays=QUICK,
            )  # fmt: skip
            with pytest.raises(Exception) as raised:
                await follower._list()
            waits = [follower._failed(raised.value) for _ in range(3)]  # type: ignore[arg-type]
            assert all(60.0 <= wait <= 60.1 for wait in waits)  # bounded: a minute at most


async def test_a_refused_token_is_read_again_at_once() -> None:
    async with KubeServer() as server:
        server.tokens = {"new"}
        async with follow(server, **SELECTED) as rig:
            rig.access.value = "old"
            await until(lambda: rig.count("failures", "p", "pods", "denied") >= 2)
            assert rig.access.asked_again >= 2
            rig.access.value = "new"
            server.store.put(PODS, pod("a"))
            await settled(server, rig, "10.0.0.1")


async def test_forbidden_is_said_once_and_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "warmlane.feeds")
    async with KubeServer() as server:
        forbidden = Refusal(403, "Forbidden", {})
        server.refuse = lambda _: forbidden
        server.store.put(PODS, pod("a"))
        async with follow(server, **SELECTED) as rig:
            await until(lambda: rig.count("failures", "p", "pods", "denied") >= 5)
            server.refuse = None
            await settled(server, rig, "10.0.0.1")
        said = [r.getMessage() for r in caplog.records if "kube_" in r.getMessage()]
        assert [line.split()[0] for line in said] == ["event=kube_failing", "event=kube_synced"]
        assert "Forbidden" in said[0]


async def test_lists_come_in_pages_and_a_lost_page_begins_anew() -> None:
    async with KubeServer() as server:
        server.page_max = 3
        for number in range(1, 11):
            server.store.put(PODS, pod(f"p{number:02}", f"10.0.0.{number}"))
        async with follow(server, **SELECTED) as rig:
            await settled(server, rig, *(f"10.0.0.{n}" for n in range(1, 11)))
            pages = asked(server, "list")
            assert len(pages) == 4 and all(each.query["limit"] == "500" for each in pages)
            expired = Refusal(410, "Expired", {})
            server.refuse = lambda each: expired if "continue" in each.query else None
            server.store.delete(PODS, "p01")
            server.store.compact()
            server.drop_watches()
            await settled(server, rig, *(f"10.0.0.{n}" for n in range(2, 11)))
            assert "limit" not in asked(server, "list")[-1].query


async def test_a_server_that_is_away_changes_nothing() -> None:
    async with KubeServer() as server:
        server.store.put(PODS, pod("a"))
        async with follow(server, **SELECTED) as rig:
            await settled(server, rig, "10.0.0.1")
            refused = Refusal(503, "ServiceUnavailable", {})
            server.refuse = lambda _: refused
            server.drop_watches()
            await until(lambda: rig.count("failures", "p", "pods", "server") >= 6)
            assert rig.ready == {"10.0.0.1:80"}
            server.store.delete(PODS, "a")
            server.refuse = None
            await settled(server, rig)
            assert rig.members == set()


async def test_a_starting_server_that_knows_no_resources_empties_nothing() -> None:
    async with KubeServer() as server:
        server.store.put(PODS, pod("a"))
        async with follow(server, **SELECTED) as rig:
            await settled(server, rig, "10.0.0.1")
            missing = Refusal(404, "NotFound", {})
            server.refuse = lambda _: missing
            server.drop_watches()
            await until(lambda: rig.count("failures", "p", "pods", "absent") >= 12)
            assert rig.ready == {"10.0.0.1:80"}
            server.refuse = None
            server.store.put(PODS, pod("b", "10.0.0.2"))
            await settled(server, rig, "10.0.0.1", "10.0.0.2")


async def test_three_failures_without_an_event_list_again() -> None:
    async with KubeServer() as server:
        refused = Refusal(500, "InternalError", {})
        server.store.put(PODS, pod("a"))
        async with follow(server, **SELECTED) as rig:
            await settled(server, rig, "10.0.0.1")
            server.refuse = lambda each: refused if each.what == "watch" else None
            server.drop_watches()
            await until(lambda: len(asked(server, "list")) >= 2)
            server.refuse = None
            await settled(server, rig, "10.0.0.1")


async def test_the_copy_is_bounded() -> None:
    metrics = Metrics()
    async with KubeApi(PlainAccess("http://127.0.0.1:1")) as api:
        follower = Follower(
            api, "pods", ["/x"], Pod, pool="p", metrics=metrics, on_change=lambda: None
        )
        for number in range(MAX_OBJECTS + 3):
            follower._put(follower.objects, b'{"metadata":{"name":"p%d"}}' % number)
        follower._put(follower.objects, b'{"metadata":{"name":"p0","uid":"later"}}')
    assert len(follower.objects) == MAX_OBJECTS
    assert follower.objects["/p0"].metadata.uid == "later"
    assert metrics.counts["warmlane_limits_reached_total"] == {("kube_objects",): 3}


async def test_nothing_is_left_behind_when_it_is_cancelled() -> None:
    async with KubeServer() as server:
        async with follow(server, **SELECTED) as rig:
            await settled(server, rig)
            assert rig.metrics.gauges["warmlane_kube_synced"] == {("p", "pods"): 1}
        await until(lambda: server.watching == [])
        assert rig.metrics.gauges["warmlane_kube_synced"] == {("p", "pods"): 0}
        names = {task.get_name() for task in asyncio.all_tasks()}
        assert not any("follow" in name for name in names)
