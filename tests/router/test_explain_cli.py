"""`warmlane explain` against the admin port of a running router."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.common import until
from tests.router.feeds.engine import Engine
from warmlane.router.build import build
from warmlane.router.cli import main
from warmlane.router.config import Admin, Config, PoolConfig
from warmlane.router.config_admission import Admission
from warmlane.router.explain_cli import state_of
from warmlane.router.proxy.admin import start_admin
from warmlane.router.types import Kind, ReplicaSpec, ReplicaState, Request

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "secret words " * 50}]}


@pytest.fixture
async def admin_url(tmp_path: Path) -> AsyncIterator[str]:
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    async with Engine() as engine:
        config = Config(
            pools=[PoolConfig(replicas=[ReplicaSpec(url=engine.url, name="gpu-0")])],
            admin=Admin(port=0, token_file=str(token)),
        )
        running = await build(config)
        admin = await start_admin(running, config, list)
        await until(lambda: running.why_not_ready() == "")
        yield f"http://127.0.0.1:{admin.port}"
        await admin.close()
        await running.close()


async def explain(*words: str) -> int:
    """The command blocks: it runs beside the loop that serves it."""

    def run() -> int:
        try:
            return main(["explain", *words])
        except SystemExit as stop:
            return int(stop.code or 0)

    return await asyncio.to_thread(run)


async def test_a_table_with_the_choice(
    admin_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = tmp_path / "body.json"
    body.write_text(json.dumps(CHAT))
    token = str(tmp_path / "token")
    assert await explain("--admin", admin_url, "--token-file", token, str(body)) == 0
    text = capsys.readouterr().out
    assert "gpu-0" in text
    assert "total" in text
    assert "secret" not in text


@pytest.mark.parametrize(
    ("state", "filtered", "shown"),
    [
        ("READY", "", "ready"),
        ("EJECTED", "ready", "ejected"),
        ("READY", "subset", "ready, not by subset"),
    ],
)
def test_the_state_of_a_row(state: str, filtered: str, shown: str) -> None:
    assert state_of({"state": state, "removed_by": filtered}) == shown


async def test_what_admission_would_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = tmp_path / "body.json"
    body.write_text(json.dumps({"model": "m", "prompt": "words " * 400}))
    admission = Admission(enabled=True, tenant="header", backlog_s=0.001, unstarted=1)
    specs = [ReplicaSpec(url="http://127.0.0.9:9")]
    config = Config(
        pools=[PoolConfig(replicas=specs, models=["m"])],
        admission=admission,
        admin=Admin(port=0),
    )
    running = await build(config)
    admin = await start_admin(running, config, list)
    words = ["--admin", f"http://127.0.0.1:{admin.port}", str(body)]
    try:
        assert await explain(*words) == 0
        assert "waits for: no replica is ready" in capsys.readouterr().out
        running.router.pools["default"].set_state(0, ReplicaState.READY)
        running.router.maintain(0.0)
        assert await explain(*words) == 0
        assert "goes at once" in capsys.readouterr().out
        for number in range(3):
            request = Request(kind=Kind.COMPLETIONS, model="m", prompt=b"%d " % number * 9000)
            running.router.ask(request, 0.0, 1, None)
        running.router.maintain(0.1)
        named = ["x-llm-d-inference-fairness-id: us", "x-warmlane-deadline-ms:0"]
        headers = [word for name in named for word in ("--header", name)]
        assert await explain(*words, *headers) == 0
        text = capsys.readouterr().out
        assert "waits for: room in a replica; place 1 of 1" in text
        assert "at most 0 s (too late: 429 queue_timeout)" in text
        assert "room in 0 of 1 replicas" in text and "opens a session" in text
    finally:
        await admin.close()
        await running.close()


async def test_json_and_stdin(
    admin_url: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(json.dumps({"model": "tiny", "prompt": "x"}).encode()))
    monkeypatch.setattr("sys.stdin", stdin)
    token = str(tmp_path / "token")
    words = ("--admin", admin_url.removeprefix("http://"), "--token-file", token, "--json", "-")
    assert await explain(*words, "--path", "/v1/completions") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["replicas"][0]["replica"] == "gpu-0"


async def test_a_refusal_is_one_line_and_status_1(
    admin_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = tmp_path / "body.json"
    body.write_text(json.dumps({**CHAT, "model": "unknown one"}))
    token = str(tmp_path / "token")
    assert await explain("--admin", admin_url, str(body)) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert await explain("--admin", admin_url, "--token-file", token, str(body)) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "unknown one" in error
    assert "status 404" in error
    assert await explain("--admin", "http://127.0.0.1:9", str(body)) == 1
    assert "does not answer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words", "message"),
    [
        (None, [], "No such file"),
        ("{", [], "not JSON"),
        ("{}", ["--admin", "ftp://x"], "--admin"),
        ("{}", ["--token-file", "/no/token"], "/no/token"),
        ("{}", ["--header", "no colon"], "NAME:VALUE"),
        ("{}", ["--header", "Authorization: x"], "of the question"),
    ],
)
async def test_bad_input_is_one_line_and_status_2(
    content: str | None,
    words: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    body = tmp_path / "body.json"
    if content is not None:
        body.write_text(content)
    assert await explain(*words, str(body)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


async def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert await explain("--help") == 0
    text = capsys.readouterr().out
    for word in ("BODY.json", "--admin", "--path", "--token-file", "--json", "--header"):
        assert word in text
