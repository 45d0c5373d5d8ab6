"""A page that is served while its run goes on: one address on this machine, and nothing else.

The server answers GET / and refuses the rest. It checks the Host header, so that a name which an
attacker's site points at 127.0.0.1 gets nothing.
"""

from collections.abc import Callable
from html import escape
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer

from loractl.errors import LoractlError

ADDRESS = "127.0.0.1"
SECONDS = 5
"""After which a browser asks again, while the run goes on."""
HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
}
MakePage = Callable[[], tuple[str, bool]]
"""Makes the page anew: (HTML, whether it will change)."""


class PageServer(HTTPServer):
    """Serves one page at a port that the system chooses."""

    def __init__(self, make: MakePage) -> None:
        super().__init__((ADDRESS, 0), _Handler)
        self.make = make

    @property
    def url(self) -> str:
        return f"http://{ADDRESS}:{self.server_port}/"


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    server_version, sys_version = "loractl", ""
    timeout = 10.0  # seconds: a client that connects and says nothing must not block the others

    def do_GET(self) -> None:
        port = self.server.server_port
        if self.headers.get("Host") not in (f"{ADDRESS}:{port}", f"localhost:{port}"):
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST)
        elif self.path != "/":
            self.send_error(HTTPStatus.NOT_FOUND)
        else:
            self._send_page()

    def _send_page(self) -> None:
        status = HTTPStatus.OK
        try:
            page, changes = self.server.make()
        except (LoractlError, OSError) as error:  # a file that the run is replacing just now
            status, page, changes = HTTPStatus.SERVICE_UNAVAILABLE, escape(str(error)), True
        content = page.encode("utf-8")
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        if changes:
            self.send_header("Refresh", str(SECONDS))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: what is asked of it is no news."""
