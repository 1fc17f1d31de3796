"""A page that is followed while its run trains, as a user starts both."""

from __future__ import annotations

import http.client
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from slurm.testcluster.cluster import PATIENCE
from tests.end_to_end.processes import DEBUG, ENDLESS, Started, start, steps, wait_until
from tests.report.runs import Open

pytestmark = pytest.mark.whole_run


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Started, Path]]:
    root = tmp_path_factory.mktemp("followed")
    longer_epochs = ("data.limit=1000", "run.threads=1", "run.keep=100000")
    process = start(*DEBUG, f"run.root={root}", *ENDLESS, *longer_epochs)
    run = root / "debug"
    wait_until(lambda: steps(run) > 2, process)
    yield process, run
    process.kill()
    process.wait(PATIENCE)


@pytest.fixture(scope="module")
def address(training: tuple[Started, Path]) -> Iterator[str]:
    process = start("report", training[1], "--follow", "--every", "0.5")
    pattern = re.compile(r"http://127\.0\.0\.1:\d+/[\w-]{20,}/")
    found = next(filter(None, map(pattern.search, process.stdout)))
    yield found[0]
    process.kill()
    process.wait(PATIENCE)


def ask(address: str, path: str, method: str = "GET", host: str = "") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=PATIENCE)
    connection.request(method, path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_only_the_page_can_be_had_and_only_by_its_name(address: str) -> None:
    path = urlsplit(address).path
    status, page = ask(address, path)
    assert (status, page[:15]) == (200, b"<!doctype html>")
    assert ask(address, path, "HEAD") == (200, b"")
    status, version = ask(address, path + "version")
    assert status == 200
    assert len(version) == 16
    for wrong in ("/", "/version", path[:-1], path + "config.yaml", path + "../", f"/{path[2:]}"):
        assert ask(address, wrong)[0] == 404
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        assert ask(address, path, method)[0] == 501
    assert ask(address, path, host="elsewhere.example")[0] == 404
    assert ask(address, path, host=f"localhost:{urlsplit(address).port}")[0] == 200


def test_other_machines_do_not_reach_it(address: str) -> None:
    """It listens on the loopback alone: this machine's own other address is refused."""
    probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        probe.connect(("198.51.100.1", 9))  # sends nothing
        own = probe.getsockname()[0]
    except OSError:
        own = "127.0.0.2"
    port = urlsplit(address).port
    assert port is not None
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((own, port), timeout=5)


def test_the_page_grows_with_the_run_and_keeps_what_was_chosen(address: str, look: Open) -> None:
    watched = look(address)
    page = watched.page
    first = page.get_attribute("body", "data-version")
    page.click("#theme")
    chosen = page.evaluate("document.documentElement.dataset.theme")
    page.wait_for_function(
        "first => document.body && document.body.dataset.version !== first", arg=first
    )
    page.wait_for_selector("#map", state="attached")
    page.wait_for_function("c => document.documentElement.dataset.theme === c", arg=chosen)
    assert "training, round" in str(page.locator(".state").text_content())
    origin = address[: address.index("/", 8)]
    assert all(url.startswith((origin, "data:")) for url in watched.requests)
    others = {urlsplit(url).path for url in watched.requests if url.startswith(origin)}
    assert others == {urlsplit(address).path, urlsplit(address).path + "version"}
    assert watched.complaints == []


def test_a_page_that_is_paused_stays(address: str, look: Open) -> None:
    page = look(address).page
    # A click on a page that is giving way to a newer one is lost.
    while page.get_attribute("#pause", "aria-pressed") != "true":
        page.click("#pause")
        page.wait_for_timeout(2000)
    before = page.get_attribute("body", "data-version")
    newest = f"{urlsplit(address).path}version"
    deadline = time.monotonic() + PATIENCE
    while ask(address, newest)[1].decode() == before and time.monotonic() < deadline:
        time.sleep(0.2)
    page.wait_for_timeout(2000)
    assert page.get_attribute("body", "data-version") == before
    page.click("#pause")
    page.wait_for_function(
        "before => document.body && document.body.dataset.version !== before", arg=before
    )


def test_a_port_that_is_taken_is_a_sentence(address: str, training: tuple[Started, Path]) -> None:
    port = urlsplit(address).port
    process = start("report", training[1], "--follow", "--port", port)
    output, _ = process.communicate(PATIENCE)
    assert process.returncode == 2
    assert f"--port {port} is not available: Address already in use; 0 takes any" in output
