"""Serve a page that follows a run while it trains (`and-dist report --follow RUN`).

It is served on 127.0.0.1 alone, under a path that cannot be guessed. Nothing but the page and its
version is served.
"""

from __future__ import annotations

import contextlib
import hmac
import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from and_dist.distributed.launch_env import AllRanksError
from and_dist.report.build import gather, newest_checkpoint, read_histories
from and_dist.report.page import render
from and_dist.report.run_history import History
from and_dist.runs.console import Display
from and_dist.runs.lock import is_held

if TYPE_CHECKING:
    from and_dist.distributed.world import World
    from and_dist.report.checkpoint_views import Findings

HOSTS = ("127.0.0.1", "localhost")
"""The host names that a request may have. A site whose name has been pointed to 127.0.0.1 (DNS
rebinding) sends its own name and is refused."""
MOST_CONNECTIONS = 64
SECONDS_TO_ASK = 10.0
"""The time in which a request has to arrive as a whole."""
SECONDS_TO_READ = 300.0
"""The time in which an answer has to be taken; a page has up to 15 MB."""
HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Pages:
    """Hold the newest page of a run and its version."""

    def __init__(
        self, run: Path, others: Sequence[Path], world: World | None, display: Display
    ) -> None:
        """Start without a page; refresh() makes the first one, without pictures if no world is."""
        self._run, self._others = run, others
        self._world, self._display = world, display
        self._findings: Findings | None = None
        self._looked_at = ""
        self._seen: tuple[object, ...] = ()
        self._problem = ""
        self.newest = (b"", "")
        """The page and its version: one tuple, so that a request never sees a page with another's
        version."""

    def refresh(self, every: float, with_pictures: bool = True) -> None:
        """Make the page anew if the run's files have changed.

        `every` is the number of seconds after which the page looks for a newer version. Raise
        ValueError if a run cannot be read.
        """
        seen = with_pictures, *(_state_of(run) for run in (self._run, *self._others))
        if seen == self._seen:
            return
        histories = read_histories(self._run, self._others)
        if with_pictures:
            self._refresh_findings(histories[0])
        self._seen = seen
        version = secrets.token_hex(8)
        self.newest = render(histories, self._findings, version, every).encode(), version

    def _refresh_findings(self, history: History) -> None:
        """Read the checkpoints again if a round has begun since or the run has finished.

        This happens once a round only, because it takes a while and training needs the cores. If
        the checkpoints cannot be read, log each reason once and keep the earlier findings.
        """
        if self._world is None:
            return
        round_name = newest_checkpoint(self._run).partition("-")[0]
        now = f"{round_name} {history.state == 'finished'}"
        if not round_name or now == self._looked_at:
            return
        try:
            self._findings = gather(history, self._world, self._display.phase)
            self._looked_at = now
        except (ValueError, OSError, AllRanksError) as error:
            # The checkpoint was deleted while it was read. The next refresh tries again.
            if str(error) != self._problem:
                self._problem = str(error)
                self._display.say(f"no new pictures: {error}")


def _state_of(run: Path) -> tuple[object, ...]:
    """Return a value that changes whenever the run's files that a page shows change."""
    found: list[object] = []
    for name in ("metrics.jsonl", "environment.json", "checkpoints/latest", "evaluation", "stalls"):
        path = run / name
        if path.exists():
            entry = path.stat()
            found.append((name, entry.st_size, entry.st_mtime_ns))
    return (*found, *run.glob("jobs/*/start-*/end.json"), is_held(run))


class PageServer(ThreadingHTTPServer):
    """Answer each connection in a thread, so many at once and none for ever."""

    request_queue_size = MOST_CONNECTIONS

    def __init__(self, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        """Listen on a port of this machine alone."""
        super().__init__(("127.0.0.1", port), handler)
        self._deadlines: dict[socket.socket, float] = {}
        self._lock = threading.Lock()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a connection, or close it if there are as many as there may be."""
        with self._lock:
            is_full = len(self._deadlines) >= MOST_CONNECTIONS
            if not is_full:
                self._deadlines[request] = time.monotonic() + SECONDS_TO_ASK
        if is_full:
            self.shutdown_request(request)
        else:
            super().process_request(request, client_address)

    def give_time_to_read(self, request: socket.socket) -> None:
        """Let whoever has asked for the page take as long as a slow network does."""
        with self._lock:
            self._deadlines[request] = time.monotonic() + SECONDS_TO_READ

    def shutdown_request(self, request: Any) -> None:
        """Close a connection and forget it."""
        with self._lock:
            self._deadlines.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Cut off connections whose time is over; the server calls this about twice a second."""
        now = time.monotonic()
        with self._lock:
            late = [request for request, deadline in self._deadlines.items() if deadline < now]
        for request in late:
            with contextlib.suppress(OSError):  # it has been closed meanwhile
                request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing about a connection that ended early."""


def serve(pages: Pages, port: int, token: str) -> PageServer:
    """Start a server that answers from a thread of its own; shutdown() stops it."""

    class Handler(BaseHTTPRequestHandler):
        """Answer GET and HEAD of two paths; everything else is error 404."""

        server_version, sys_version = "and-dist", ""

        def do_GET(self) -> None:
            """Answer with headers and content."""
            self._answer(with_content=True)

        def do_HEAD(self) -> None:
            """Answer with headers only."""
            self._answer(with_content=False)

        def _answer(self, with_content: bool) -> None:
            """Answer with the page or its version, or with error 404."""
            server.give_time_to_read(self.connection)
            page, version = pages.newest
            contents = {
                f"/{token}/": ("text/html", page),
                f"/{token}/version": ("text/plain", version.encode()),
            }
            # As it was sent: self.path has lost slashes that it began with.
            asked = self.requestline.split()[1].encode(errors="replace")
            # compare_digest takes the same time for every wrong path, so timing tells nothing.
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
            """Log nothing: a list of requests would fill the terminal."""

    server = PageServer(port, Handler)
    threading.Thread(target=server.serve_forever, name="pages", daemon=True).start()
    return server


def follow(pages: Pages, port: int, every: float, say: Callable[[str], None]) -> NoReturn:
    """Serve the page and refresh it every `every` seconds until the process is interrupted.

    Raise ValueError if the port is taken.
    """
    pages.refresh(every, with_pictures=False)
    token = secrets.token_urlsafe(16)
    try:
        server = serve(pages, port, token)
    except OSError as error:
        raise ValueError(f"--port {port} is not available: {error.strerror}; 0 takes any") from None
    say(f"http://127.0.0.1:{server.server_address[1]}/{token}/ (Ctrl-C ends it)")
    try:
        while True:
            try:
                pages.refresh(every)
            except (ValueError, OSError) as error:  # the run's folder is being written
                say(str(error))
            time.sleep(every)
    finally:
        server.shutdown()
        server.server_close()
