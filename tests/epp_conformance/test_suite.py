"""The suite on the plain picker: a whole one passes everything, each flaw is noticed."""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.epp_conformance.help import picker, results, target, told
from tests.epp_conformance.mutants import ELSEWHERE, MUTANTS
from warmlane.envoy.conformance import command
from warmlane.envoy.conformance.suite import CASES, chosen
from warmlane.envoy.conformance.target import FEATURES, BodyMode, features
from warmlane.router.cli import main
from warmlane.router.errors import ConfigError

QUICK_RESETS = 96
AGEING_RESETS = 960  # about a second: connections of the picker that ages end after 150 ms


@pytest.fixture
async def whole() -> Any:
    served = picker(watch=True)
    await served.start()
    yield served
    await served.stop()


@pytest.fixture
async def plain() -> Any:
    """The same, deaf to what its engines say: nobody serves any."""
    served = picker()
    await served.start()
    yield served
    await served.stop()


async def test_a_picker_that_keeps_the_rules_passes_every_case(whole: Any) -> None:
    found = await results(target(whole))
    assert told(found, "fail") == {}
    assert set(told(found, "skip")) == ELSEWHERE
    assert len(found) == len(CASES)


@pytest.mark.parametrize("mode", [BodyMode.BUFFERED, BodyMode.BUFFERED_PARTIAL])
async def test_the_whole_suite_in_other_body_modes(plain: Any, mode: BodyMode) -> None:
    aim = target(plain, body_mode=mode, resets=0)
    assert told(await results(aim), "fail") == {}


@pytest.mark.parametrize("mode", [BodyMode.STREAMED, BodyMode.NONE])
async def test_modes_in_which_headers_decide(plain: Any, mode: BodyMode) -> None:
    expect = features(["all", "-prefix"])
    aim = target(plain, body_mode=mode, resets=0, expect=expect)
    assert told(await results(aim), "fail") == {}


@pytest.mark.parametrize("phase", ["headers", "none"])
async def test_smaller_response_phases(plain: Any, phase: str) -> None:
    aim = target(plain, phase=phase)
    found = await results(aim, "response.*", "test.served", "model.response")
    assert told(found, "fail") == {}
    if phase == "none":
        assert not told(found, "pass")


@pytest.mark.parametrize("flaw", MUTANTS)
async def test_each_flaw_is_noticed(flaw: str) -> None:
    cases = MUTANTS[flaw].split()
    served = picker([flaw], watch=any(name.startswith("state.") for name in cases))
    await served.start()
    try:
        resets = AGEING_RESETS if flaw == "ages" else QUICK_RESETS
        aim = target(served, timeout_s=0.7, resets=resets, large_bytes=400_000)
        found = await results(aim, *cases)
    finally:
        await served.stop()
    assert set(told(found, "fail")) == set(cases)
    for result in found.values():
        assert result.expected and result.came, result


def test_every_case_has_a_flaw_that_fails_it() -> None:
    shown = {name for names in MUTANTS.values() for name in names.split()} | ELSEWHERE
    assert shown == {case.id for case in CASES}


def test_ids_are_unique_and_every_feature_is_used() -> None:
    ids = [case.id for case in CASES]
    assert len(ids) == len(set(ids))
    assert {case.needs.feature for case in CASES} - {""} | {"subset-ports"} >= set(FEATURES) - {
        "cost"
    }
    assert all(case.title and case.source for case in CASES)


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Self-signed, as pickers make it at start: (key, certificate)."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed: no certificate to serve")
    folder = tmp_path_factory.mktemp("tls")
    key, cert = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-nodes", "-days", "2", "-subj", "/O=picker"),
            *("-addext", "subjectAltName=DNS:epp.test", "-keyout", str(key), "-out", str(cert)),
        ],
        check=True,
        capture_output=True,
    )
    return key, cert


async def test_tls_without_and_with_verification(certificate: tuple[Path, Path]) -> None:
    key, cert = certificate
    served = picker()
    await served.start((key.read_bytes(), cert.read_bytes()))
    try:
        skip = target(served, tls="skip")
        found = await results(skip, "request.header", "stream.tls", "stream.concurrent", "health.*")
        assert told(found, "fail") == {} and found["stream.tls"].verdict == "pass"
        known = target(served, tls="verify", ca=str(cert), server_name="epp.test")
        assert told(await results(known, "request.header"), "pass")
        stranger = target(served, tls="verify", ca=str(cert), server_name="other.test")
        with pytest.raises(ssl.SSLCertVerificationError):
            await results(stranger, "request.header")
        with pytest.raises(OSError):
            await results(target(served, tls="verify"), "request.header")
    finally:
        await served.stop()


async def test_tls_without_alpn_is_noticed(certificate: tuple[Path, Path]) -> None:
    """A TLS terminator that does not offer h2, in front of a whole picker."""
    key, cert = certificate
    served = picker()
    await served.start()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", served.port)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            try:
                while data := await source.read(65_536):
                    sink.write(data)
                    await sink.drain()
            except OSError:
                return
            finally:
                sink.close()

        await asyncio.gather(pump(reader, back), pump(there, writer))

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    front = await asyncio.start_server(relay, "127.0.0.1", 0, ssl=context)
    try:
        port = front.sockets[0].getsockname()[1]
        found = await results(target(served, tls="skip", port=port), "stream.tls")
        assert found["stream.tls"].verdict == "fail"
        assert "h2" in found["stream.tls"].expected
    finally:
        front.close()
        await served.stop()


# The command


def run_command(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = main(["epp-conformance", *words])
    out, err = capsys.readouterr()
    return status, out, err


async def in_thread(function: Any, *args: Any) -> Any:
    return await asyncio.to_thread(function, *args)


async def test_the_command_prints_a_line_per_case_and_a_summary(
    plain: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"127.0.0.1:{plain.port}", "--plaintext", "--model", "m", "--only", "subset.*"]
    words += [item for endpoint in plain.endpoints for item in ("--endpoint", endpoint)]
    status, out, _ = await in_thread(run_command, capsys, *words, "--expect", "subset-string")
    assert status == 0
    lines = out.splitlines()
    assert len(lines) == 1 + len(chosen(["subset.*"]))
    assert lines[-1] == "8 passed, 0 failed, 2 skipped"
    assert any(line.startswith("SKIP  subset.port") and "--expect" in line for line in lines)
    status, out, _ = await in_thread(run_command, capsys, *words, "--json")
    told_all = json.loads(out)
    assert status == 0 and told_all["fail"] == 0 and len(told_all["cases"]) == len(lines) - 1
    first = told_all["cases"][0]
    assert {"id", "source", "title", "verdict", "expected", "came", "transcript"} <= first.keys()
    assert first["transcript"][0].startswith("> request_headers")


async def test_a_failure_is_status_1_and_says_what_was_sent(
    capsys: pytest.CaptureFixture[str],
) -> None:
    served = picker(["no-metadata"])
    await served.start()
    try:
        status, out, _ = await in_thread(
            run_command,
            capsys,
            *(f"127.0.0.1:{served.port}", "--plaintext", "--model", "m", "--verbose"),
            *("--only", "request.metadata"),
        )
    finally:
        await served.stop()
    assert status == 1
    assert "FAIL  request.metadata" in out and "EPP protocol" in out
    assert "> request_headers POST /v1/chat/completions" in out and "< request_headers" in out


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "is missing"),
        (["127.0.0.1:1", "--plaintext"], "--model is missing"),
        (["127.0.0.1:1", "--plaintext", "--model", "m"], "cannot be reached"),
        (["127.0.0.1", "--model", "m"], "expected HOST:PORT"),
        (["127.0.0.1:1", "--model", "m", "--endpoint", "host:1"], "expected IP:PORT"),
        (["127.0.0.1:1", "--model", "m", "--expect", "magic"], "no such feature"),
        (["127.0.0.1:1", "--model", "m", "--only", "no.*"], "no case fits"),
        (["127.0.0.1:1", "--model", "m", "--alias", "a"], "NAME=TARGET"),
        (["127.0.0.1:1", "--model", "m", "--serve"], "--serve needs"),
        (["127.0.0.1:1", "--model", "m", "--plaintext", "--ca", "x"], "exclude"),
        (["127.0.0.1:1", "--model", "m", "--timeout", "0"], "--timeout"),
        (["127.0.0.1:1", "--model", "m", "--ca", "/no/such/file"], "cannot be reached"),
    ],
)
def test_what_cannot_run_is_status_2(
    words: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run_command(capsys, *words)
    assert status == 2 and not out
    assert reason in err and len(err.splitlines()) == 1


def test_the_list_names_all(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run_command(capsys, "--list")
    assert status == 0
    assert all(case.id in out for case in CASES) and all(name in out for name in FEATURES)


def test_expectations() -> None:
    assert features([]) == frozenset()
    assert features(["rewrite,spread", "prefix"]) == {"rewrite", "spread", "prefix"}
    assert features(["all,-shed"]) == frozenset(FEATURES) - {"shed"}
    with pytest.raises(ConfigError, match="magic"):
        features(["magic"])


def test_the_page_names_every_case_and_feature() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "conformance.md").read_text()
    missing = [case.id for case in CASES if f"`{case.id}`" not in page]
    missing += [name for name in FEATURES if f"`{name}`" not in page]
    assert missing == []
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    options = {text for action in parser._actions for text in action.option_strings}
    assert [text for text in options - {"-h", "--help"} if f"`{text}" not in page] == []
