"""The served page: one address, for this machine, and nothing else."""

import http.client
import threading
from collections.abc import Iterator

import pytest

from loractl.engine.report import watch
from loractl.engine.report.watch import PageServer
from loractl.errors import ConfigError


class Shown:
    """What the server is given to show."""

    changes = True
    error: Exception | None = None

    def page(self) -> tuple[str, bool]:
        if self.error:
            raise self.error
        return "<p>é", self.changes


@pytest.fixture
def shown() -> Shown:
    return Shown()


@pytest.fixture
def port(shown: Shown) -> Iterator[int]:
    with PageServer(shown.page) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        assert server.server_address[0] == "127.0.0.1"
        assert server.url == f"http://127.0.0.1:{server.server_port}/"
        yield server.server_port
        server.shutdown()
        thread.join()


def ask(
    port: int, path: str = "/", method: str = "GET", host: str | None = None
) -> tuple[int, dict[str, str], str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.putrequest(method, path, skip_host=True)
    if host != "":
        connection.putheader("Host", host or f"127.0.0.1:{port}")
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, dict(answer.getheaders()), body


def test_the_page_comes_again_while_it_changes(port: int, shown: Shown) -> None:
    status, headers, body = ask(port)
    assert (status, body, headers["Refresh"]) == (200, "<p>é", str(watch.SECONDS))
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert headers["Cache-Control"] == "no-store"
    shown.changes = False
    assert "Refresh" not in ask(port, host=f"localhost:{port}")[1]


@pytest.mark.parametrize("path", ["/x", "/../config.yaml", "/report.html", "/?a", "http://x/"])
def test_there_is_no_other_address(port: int, path: str) -> None:
    assert ask(port, path)[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "HEAD", "DELETE", "OPTIONS"])
def test_it_is_only_read(port: int, method: str) -> None:
    assert ask(port, method=method)[0] == 501


@pytest.mark.parametrize("host", ["", "example.com", "127.0.0.1", "localhost:1"])
def test_another_name_for_this_machine_gets_nothing(port: int, host: str) -> None:
    status, _, body = ask(port, host=host)
    assert status == 421 and "é" not in body


@pytest.mark.parametrize("error", [ConfigError("<b>"), FileNotFoundError("<b>")])
def test_while_files_are_replaced_it_asks_again(port: int, shown: Shown, error: Exception) -> None:
    shown.error = error
    status, headers, body = ask(port)
    assert (status, body) == (503, "&lt;b&gt;") and "Refresh" in headers
