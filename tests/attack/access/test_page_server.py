"""The server of a followed report: who does not know its path gets nothing, and holds nothing."""

from __future__ import annotations

import http.client
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from and_dist.report import serve as module
from and_dist.report.page import _policy
from and_dist.report.serve import MOST_CONNECTIONS, Pages, PageServer, serve
from slurm.testcluster.cluster import PATIENCE

FIXTURES = Path(__file__).parents[2] / "fixtures"
TOKEN = "a-token-that-nobody-guesses"
PAGE = b"<!doctype html>" + b"x" * 3_000_000


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[PageServer]:
    monkeypatch.setattr(module, "SECONDS_TO_ASK", 1.0)
    pages: Any = SimpleNamespace(newest=(PAGE, "version"))
    server = serve(pages, 0, TOKEN)
    yield server
    server.shutdown()
    server.server_close()


def connect(server: PageServer) -> socket.socket:
    return socket.create_connection(server.server_address[:2], timeout=PATIENCE)


def answer(server: PageServer, request: bytes) -> bytes:
    with connect(server) as client:
        client.sendall(request)
        return b"".join(iter(lambda: client.recv(1 << 16), b""))


def ask(server: PageServer, path: str, host: str = "localhost") -> int:
    request = f"GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode()
    return int(answer(server, request).split()[1])


@pytest.mark.parametrize(
    "path",
    [
        "/",
        f"//{TOKEN}/",
        f"///{TOKEN}/",
        f"/{TOKEN}",
        f"/{TOKEN}//",
        f"/{TOKEN}/?",
        f"/{TOKEN}/#",
        f"/{TOKEN}/./",
        f"/./{TOKEN}/",
        f"/x/../{TOKEN}/",
        f"/%61{TOKEN[1:]}/",
        f"/{TOKEN.upper()}/",
        f"/{TOKEN}/version/",
        f"http://localhost/{TOKEN}/",
    ],
)
def test_only_the_very_path_has_a_page(server: PageServer, path: str) -> None:
    assert ask(server, f"/{TOKEN}/") == ask(server, f"/{TOKEN}/version") == 200
    assert ask(server, path) == 404


@pytest.mark.parametrize(
    "host",
    ["elsewhere.example", "127.0.0.1.elsewhere.example", "localhost.", "", "0.0.0.0", "[::1]"],
)
def test_a_site_under_another_name_gets_nothing(server: PageServer, host: str) -> None:
    assert ask(server, f"/{TOKEN}/", "127.0.0.1:80") == 200
    assert ask(server, f"/{TOKEN}/", host) == 404


@pytest.mark.parametrize(
    "request_line",
    [
        b"GET\r\n\r\n",
        b"\0\xff\r\n\r\n",
        b"GET  HTTP/1.0\r\n\r\n",
        b"G" * 70_000,
        b"GET / HTTP/9\r\n\r\n",
    ],
)
def test_what_is_no_request_ends_nothing(server: PageServer, request_line: bytes) -> None:
    assert PAGE not in answer(server, request_line)
    assert ask(server, f"/{TOKEN}/") == 200


def test_slow_ones_are_few_and_soon_gone(server: PageServer) -> None:
    """300 connections that never finish their request, one byte at a time."""
    slow = [connect(server) for _ in range(300)]
    deadline = time.monotonic() + PATIENCE
    while server._deadlines:
        assert len(server._deadlines) <= MOST_CONNECTIONS
        assert time.monotonic() < deadline
        for client in slow:
            try:
                client.send(b"G")
            except OSError:
                continue
        time.sleep(0.1)
    assert ask(server, f"/{TOKEN}/") == 200
    for client in slow:
        client.close()


def test_a_slow_reader_gets_the_whole_page(server: PageServer) -> None:
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=PATIENCE)
    connection.request("GET", f"/{TOKEN}/")
    response = connection.getresponse()
    received = response.read(1000)
    time.sleep(2)  # longer than a request may take to arrive
    assert received + response.read() == PAGE


def test_an_odd_line_is_left_out_and_the_page_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = shutil.copytree(FIXTURES / "and", tmp_path / "and")
    nobody: Any = None
    pages = Pages(run, (), nobody, nobody)
    pages.refresh(1.0, with_pictures=False)
    before = pages.newest
    metrics = run / "metrics.jsonl"
    whole = metrics.read_bytes()
    metrics.write_bytes(whole + b'{"event": "round"}\n')
    pages.refresh(1.0, with_pictures=False)
    assert pages.newest != before
    assert f"1 line of {metrics} is damaged and left out: line 37" in caplog.text


def test_a_page_may_load_and_send_nothing() -> None:
    policy = dict(part.split(" ", 1) for part in _policy(("script",), False).split("; "))
    assert policy.pop("script-src").startswith("'sha256-")
    assert policy == {
        "default-src": "'none'",
        "style-src": "'unsafe-inline'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
