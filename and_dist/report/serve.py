"""`and-dist report --follow RUN`: a page that is made again while a run trains, for this machine.

It is served on 127.0.0.1 under a path that nobody can guess, and nothing but the page can be had.
"""

from __future__ import annotations

import hmac
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NoReturn

from and_dist.distributed.launch_env import AllRanksError
from and_dist.distributed.world import World
from and_dist.report.build import gather, read_histories
from and_dist.report.checkpoint_views import Findings
from and_dist.report.page import render
from and_dist.report.run_history import History
from and_dist.runs.console import Display
from and_dist.runs.lock import is_held

HOSTS = ("127.0.0.1", "localhost")
"""Names a browser may have asked for: no other site's name can be made to lead here."""
HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Pages:
    """The newest page of a run, and its version."""

    def __init__(self, run: Path, others: Sequence[Path], world: World, display: Display) -> None:
        self._run, self._others = run, others
        self._world, self._display = world, display
        self._findings: Findings | None = None
        self._looked_at = ""
        self._seen: tuple[object, ...] = ()
        self._problem = ""
        self.newest = (b"", "")
        """Page and version; both change at once."""

    def refresh(self, every: float, with_pictures: bool = True) -> None:
        """Make the page again if there is something new."""
        seen = with_pictures, *(_state_of(run) for run in (self._run, *self._others))
        if seen == self._seen:
            return
        histories = read_histories(self._run, self._others)
        if with_pictures:
            self._look_again(histories[0])
        self._seen = seen
        version = secrets.token_hex(8)
        self.newest = render(histories, self._findings, version, every).encode(), version

    def _look_again(self, history: History) -> None:
        """At the checkpoints, where a round has begun since or all is done: that takes a while,
        and training wants the cores."""
        newest = self._run / "checkpoints" / "latest"
        round_name = newest.read_text().partition("-")[0] if newest.exists() else ""
        now = f"{round_name} {history.state == 'finished'}"
        if not round_name or now == self._looked_at:
            return
        try:
            self._findings = gather(history, self._world, self._display.phase)
            self._looked_at = now
        except (ValueError, OSError, AllRanksError) as error:  # it was being pruned; next time
            if str(error) != self._problem:
                self._problem = str(error)
                self._display.say(f"no new pictures: {error}")


def _state_of(run: Path) -> tuple[object, ...]:
    """What changes when a run does."""
    found: list[object] = []
    for name in ("metrics.jsonl", "environment.json", "checkpoints/latest", "evaluation", "stalls"):
        path = run / name
        if path.exists():
            entry = path.stat()
            found.append((name, entry.st_size, entry.st_mtime_ns))
    return (*found, *run.glob("jobs/*/start-*/end.json"), is_held(run))


def serve(pages: Pages, port: int, token: str) -> ThreadingHTTPServer:
    """Answer from a thread; shutdown() ends it."""

    class Handler(BaseHTTPRequestHandler):
        """GET and HEAD of two paths; everything else is not there."""

        server_version, sys_version = "and-dist", ""

        def do_GET(self) -> None:
            self._answer(with_content=True)

        def do_HEAD(self) -> None:
            self._answer(with_content=False)

        def _answer(self, with_content: bool) -> None:
            page, version = pages.newest
            contents = {
                f"/{token}/": ("text/html", page),
                f"/{token}/version": ("text/plain", version.encode()),
            }
            asked = self.path.encode(errors="replace")
            found = [c for path, c in contents.items() if hmac.compare_digest(path.encode(), asked)]
            host = self.headers.get("Host", "").partition(":")[0]
            if not found or host not in HOSTS:
                self.send_error(404)
                return
            ((kind, body),) = found
            self.send_response(200)
            headers = {
                "Content-Type": f"{kind}; charset=utf-8",
                "Content-Length": str(len(body)),
                **HEADERS,
            }
            for key, value in headers.items():
                self.send_header(key, value)
            self.end_headers()
            if with_content:
                self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """A terminal that shows training needs no list of requests."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, name="pages", daemon=True).start()
    return server


def follow(pages: Pages, port: int, every: float, say: Callable[[str], None]) -> NoReturn:
    """Until someone ends it."""
    pages.refresh(every, with_pictures=False)
    token = secrets.token_urlsafe(16)
    try:
        server = serve(pages, port, token)
    except OSError as error:
        raise ValueError(f"--port {port} cannot be had: {error.strerror}; 0 takes any") from None
    say(f"http://127.0.0.1:{server.server_address[1]}/{token}/ (Ctrl-C ends it)")
    try:
        while True:
            try:
                pages.refresh(every)
            except ValueError as error:  # a folder that is being written
                say(str(error))
            time.sleep(every)
    finally:
        server.shutdown()
        server.server_close()
