"""What happens to connections: slow, cut, half-open and oversized; and the command that serves."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest

from guidestar.cli import main
from guidestar.cli.serving import LIMITS, read_limits
from guidestar.serve.web import Limits, read_keys
from guidestar.serve.web.run import is_loopback
from helpers.served import toy_model
from helpers.serving import PICTURE, serving
from helpers.toys import Spy, toy

SMALL = Limits(body=10_000, receive=0.4, seconds=60)


@pytest.fixture(scope="module")
def served():
    with serving(limits=SMALL) as served:
        yield served


def raw(served, *parts: bytes, pause: float = 0.0, wait: float = 10.0) -> bytes:
    """Send bytes, and return all that comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=wait) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(pause)
        received = b""
        try:
            while data := connection.recv(65536):
                received += data
        except ConnectionResetError:
            pass
        return received


HEAD = b"POST /v1/samples HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


def answers(served):
    with served.client() as client:
        return client.post("/v1/samples", json={"cond": "cat"}).status_code == 202


def test_a_body_that_says_it_is_too_large(served):
    found = raw(served, HEAD + b"Content-Length: 10001\r\n\r\n")
    assert found.startswith(b"HTTP/1.1 413") and b"10,000 bytes at most" in found
    assert answers(served)


def test_a_body_that_is_too_large_without_saying_so(served):
    chunk = b"1000\r\n" + b"x" * 0x1000 + b"\r\n"
    found = raw(served, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", chunk, chunk, chunk)
    assert found.startswith(b"HTTP/1.1 413")
    assert answers(served)


def test_a_body_that_does_not_arrive(served):
    started = time.monotonic()
    found = raw(served, HEAD + b"Content-Length: 100\r\n\r\n", b'{"cond"')
    assert found.startswith(b"HTTP/1.1 408") and time.monotonic() - started < 5
    assert answers(served)


def test_no_http(served):
    assert raw(served, b"\x16\x03\x01 hello\r\n\r\n").startswith(b"HTTP/1.1 400")
    assert answers(served)


def test_connections_that_are_cut(served):
    """Before, within and after a request: the server goes on, and nothing stays."""
    for sent in (b"", HEAD, HEAD + b"Content-Length: 50\r\n\r\n{"):
        with socket.create_connection(("127.0.0.1", served.port)) as connection:
            connection.sendall(sent)
    assert answers(served)


def slow_network(x, level, c):
    time.sleep(0.02)
    return toy(x, level, c)


def test_a_client_that_leaves_cancels_its_request():
    with serving({"toy": toy_model(Spy(slow_network), PICTURE)}) as served:
        engine = next(iter(served.service.engines.values()))
        for path, asked in (
            ("/v1/images/generations", {"prompt": "cat", "num_inference_steps": 250}),
            ("/sdapi/v1/txt2img", {"prompt": "cat", "steps": 250}),
            (
                "/v1/images/generations",
                {"prompt": "cat", "num_inference_steps": 250, "stream": True, "partial_images": 3},
            ),
        ):
            before = engine.stats.ended.get("cancelled", 0)
            with (
                served.client() as client,
                pytest.raises(httpx.ReadTimeout),
                client.stream("POST", path, json=asked, timeout=0.3) as answer,
            ):
                answer.read()
            deadline = time.monotonic() + 20
            while engine.stats.ended.get("cancelled", 0) == before:
                assert time.monotonic() < deadline
                time.sleep(0.01)


def test_a_reader_that_takes_no_events_is_left():
    """It holds nobody up, and its connection ends."""
    with serving({"toy": toy_model(shape=(3, 64, 64))}, SMALL) as served, served.client() as client:
        asked = {"cond": "cat", "steps": 250, "n": 8, "preview_every": 1}
        name = client.post("/v1/samples", json=asked).json()["id"]
        with socket.create_connection(("127.0.0.1", served.port)) as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            slow.sendall(
                f"GET /v1/samples/{name}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
            )
            other = client.post("/v1/samples", json={"cond": "cat", "steps": 2}).json()["id"]
            while client.get(f"/v1/samples/{other}").json()["status"] != "done":
                time.sleep(0.01)
            client.delete(f"/v1/samples/{name}")


def test_limits_are_read_by_name():
    assert set(LIMITS) == {name.replace("_", "-") for name in vars(Limits())}
    found = read_limits(["samples=3", "per-client=5", "seconds=1.5"])
    assert (found.samples, found.per_client, found.seconds) == (3, 5, 1.5)
    assert found.rows == Limits().rows
    for given in ("other=3", "samples", "samples=x", "samples=0", "samples=1.5", "seconds=inf"):
        with pytest.raises(ValueError, match="limit"):
            read_limits([given])


def test_keys_are_read(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# ours\n\na-key-of-one-client-123\n")
    keys = read_keys(file)
    assert keys.owner("a-key-of-one-client-123") and keys.owner("# ours") is None
    for text, said in (("", "no key"), ("short\n", "keys:1: a key has at least 16")):
        file.write_text(text)
        with pytest.raises(ValueError, match=said):
            read_keys(file)


@pytest.mark.parametrize(
    ("host", "local"),
    [
        *[("127.0.0.1", True), ("localhost", True), ("::1", True), ("127.0.5.1", True)],
        *[("0.0.0.0", False), ("192.168.0.4", False), ("::", False), ("example.com", False)],
    ],
)
def test_addresses_of_this_machine(host, local):
    assert is_loopback(host) == local


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["toy", "--host", "0.0.0.0"], "name a file of API keys with --keys"),
        (["toy", "--limit", "more=1"], "unknown limit 'more'"),
        (["fashion-mnist", "fashion-mnist"], "two models are called 'fashion-mnist'"),
        (["toy", "--keys", "missing"], "missing"),
    ],
)
def test_the_command_refuses(arguments, text, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["serve", *arguments])
    assert stopped.value.code in (1, 2) and text in capsys.readouterr().err


def test_the_help_names_every_limit(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert all(f"{name}:" in text for name in LIMITS)


@pytest.mark.slow
def test_the_command_serves_and_stops_when_told(tmp_path):
    """SIGTERM: what is under way is finished, what is new refused, and the process ends with 0."""
    command = [sys.executable, "-m", "guidestar", "serve", "fashion-mnist", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            url = re.search(r"serving fashion-mnist at (http://127\.0\.0\.1:\d+)", line)
            assert url, line
            with httpx.Client(base_url=url.group(1), timeout=60) as client:
                asked = {"cond": "bag", "steps": 40, "n": 2}
                name = client.post("/v1/samples", json=asked).json()["id"]
                os.kill(process.pid, signal.SIGTERM)
                while client.get("/readyz").status_code != 503:
                    time.sleep(0.01)
                refused = client.post("/v1/samples", json=asked)
                assert refused.status_code == 503 and "retry-after" in refused.headers
                while client.get(f"/v1/samples/{name}").json()["status"] != "done":
                    time.sleep(0.05)
                assert client.get(f"/v1/images/{name}/1.png").status_code == 200
            assert process.wait(30) == 0
        finally:
            process.kill()


@pytest.mark.slow
def test_the_command_of_the_studio_serves_its_page(tmp_path):
    pytest.importorskip("gradio")
    command = [sys.executable, "-m", "guidestar", "studio", "fashion-mnist", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        try:
            assert process.stderr is not None
            url = None
            while url is None:
                line = process.stderr.readline()
                assert line
                url = re.search(r"serving fashion-mnist at (http://127\.0\.0\.1:\d+)/studio", line)
            with httpx.Client(base_url=url.group(1), timeout=60) as client:
                page = client.get("/studio/")
                assert page.status_code == 200 and "guidestar studio" in page.text
                assert client.get("/v1/models").json()["data"][0]["id"] == "fashion-mnist"
            os.kill(process.pid, signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()
