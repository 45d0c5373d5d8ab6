"""Pages in headless Chromium, driven through its DevTools protocol. Used by tests of HTML pages.

The protocol runs over two pipes (--remote-debugging-pipe), so no library and no port is needed.
Commands: https://chromedevtools.github.io/devtools-protocol
"""

import base64
import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
    "--disable-dev-shm-usage", "--force-color-profile=srgb",
)  # fmt: skip
LIMIT = 60.0  # seconds for an answer, on a busy machine
AXE = "axe-core@4.11.0"
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


class Browser:
    """A running Chromium. Sends commands and keeps the events that come between the answers."""

    def __init__(self, program: str, home: Path) -> None:
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        command = f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}'
        self._process = subprocess.Popen(
            ["bash", "-c", command, program, *FLAGS, f"--user-data-dir={home}", "about:blank"],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._left = b""
        self._numbers = itertools.count(1)
        self.events: list[dict[str, Any]] = []

    def send(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Run a command and wait for its result. A refused command is a RuntimeError."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        text = json.dumps(message).encode() + b"\0"
        while text:
            text = text[os.write(self._out, text) :]
        ends = time.monotonic() + LIMIT
        while (answer := self._receive(ends)).get("id") != number:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    def wait_for(self, method: str, session: str) -> None:
        """Wait until an event has come."""
        ends = time.monotonic() + LIMIT
        while not any(
            one.get("method") == method and one.get("sessionId") == session for one in self.events
        ):
            self.events.append(self._receive(ends))

    def _receive(self, ends: float) -> dict[str, Any]:
        while b"\0" not in self._left:
            ready, _, _ = select.select([self._in], [], [], max(0, ends - time.monotonic()))
            if not ready:
                raise TimeoutError("Chromium does not answer")
            piece = os.read(self._in, 1 << 20)
            if not piece:
                raise RuntimeError("Chromium has ended")
            self._left += piece
        text, _, self._left = self._left.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message

    def close(self) -> None:
        with contextlib.suppress(RuntimeError, TimeoutError, OSError):
            self.send("Browser.close")
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        os.close(self._out)


class Page:
    """A page in a tab of its own, at one width, light or dark."""

    def __init__(self, browser: Browser, address: str, width: int, height: int, dark: bool) -> None:
        self._browser, self.address = browser, address
        context = browser.send("Target.createBrowserContext")["browserContextId"]
        target = browser.send(
            "Target.createTarget", url="about:blank", browserContextId=context
        )  # fmt: skip
        self._target = target["targetId"]
        self._session = browser.send(
            "Target.attachToTarget", targetId=self._target, flatten=True
        )["sessionId"]  # fmt: skip
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=width < 600)  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        still = {"name": "prefers-reduced-motion", "value": "reduce"}
        self.send("Emulation.setEmulatedMedia", features=[scheme, still])
        self.send("Page.navigate", url=address)
        browser.wait_for("Page.loadEventFired", self._session)

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        return self._browser.send(method, self._session, **params)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, or of the promise that it is."""
        found = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in found:
            raise AssertionError(found["exceptionDetails"])
        return found["result"].get("value")

    def press(self, key: str, code: int, *, shift: bool = False) -> None:
        """A key, by its name and its code: Tab 9, ArrowRight 39, Enter 13."""
        about = {
            "key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0
        }  # fmt: skip
        if key == "Enter":
            about["text"] = "\r"
        self.send("Input.dispatchKeyEvent", type="keyDown", **about)
        self.send("Input.dispatchKeyEvent", type="keyUp", **about)

    @property
    def complaints(self) -> list[str]:
        """Errors and warnings of the console, exceptions, and violations of the policy."""
        self.evaluate("0")  # what was said before is here now
        found = []
        for event in self._own_events():
            params = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                found.append(json.dumps(params["exceptionDetails"]))
            if event["method"] == "Runtime.consoleAPICalled" and params["type"] != "log":
                found.append(json.dumps(params["args"]))
            if event["method"] == "Log.entryAdded" and params["entry"]["level"] != "verbose":
                found.append(params["entry"]["text"])
        return found

    @property
    def requests(self) -> list[str]:
        """What was asked for besides the page itself and what it holds as data."""
        self.evaluate("0")
        asked = [
            event["params"]["request"]["url"]
            for event in self._own_events()
            if event["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in asked if url != self.address and not url.startswith("data:")]

    def _own_events(self) -> Iterator[dict[str, Any]]:
        events = self._browser.events
        return (event for event in events if event.get("sessionId") == self._session)

    def overflow(self) -> list[str]:
        """The elements that reach beyond the right edge of the page, unless they scroll inside."""
        found = self.evaluate(
            """(() => {
              const wide = document.documentElement.clientWidth;
              const clipped = (node) => {
                for (let up = node.parentElement; up; up = up.parentElement) {
                  const kind = getComputedStyle(up).overflowX;
                  if (["auto", "scroll", "hidden"].includes(kind)) return true;
                }
                return false;
              };
              const out = [...document.body.querySelectorAll("*")].filter((node) => {
                const box = node.getBoundingClientRect();
                return box.width && box.right > wide + 1 && !clipped(node);
              }).map((node) => `${node.tagName} ${node.id} ${node.getAttribute("class")}`);
              return document.documentElement.scrollWidth > wide ? ["the page", ...out] : out;
            })()"""
        )
        assert isinstance(found, list)
        return found

    def screenshot(self, path: Path, height: int | None = None) -> Path:
        """The page as PNG, whole or down to a height."""
        height = height or self.evaluate("document.documentElement.scrollHeight")
        width = self.evaluate("document.documentElement.clientWidth")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        shot = self.send("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))
        return path

    def faults(self, axe: str) -> list[str]:
        """What axe-core finds, from serious up, as rule, element and explanation."""
        self.evaluate(axe)
        found = self.evaluate(f"axe.run(document, {{runOnly: {json.dumps(TAGS)}}})")
        return [
            f"{rule['id']} ({rule['impact']}): {node['html'][:200]}: {node['failureSummary']}"
            for rule in found["violations"]
            for node in rule["nodes"]
            if rule["impact"] in ("serious", "critical")
        ]

    def close(self) -> None:
        self._browser.send("Target.closeTarget", targetId=self._target)


class Pages:
    """Opens pages in one browser; each is closed with it, or before."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser

    @contextlib.contextmanager
    def open(
        self, path: Path, *, width: int = 1280, height: int = 900, dark: bool = False
    ) -> Iterator[Page]:
        page = Page(self._browser, path.resolve().as_uri(), width, height, dark)
        try:
            yield page
        finally:
            page.close()


@contextlib.contextmanager
def started(home: Path) -> Iterator[Pages]:
    """A browser for several pages; skips the test where there is none."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    browser = Browser(program, home)
    try:
        yield Pages(browser)
    finally:
        browser.close()


@cache
def axe() -> str:
    """The source of axe-core, fetched once by npm; skips the test where that is not possible."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "loractl-tests"
    archive = folder / f"{AXE.replace('@', '-')}.tgz"
    if not archive.is_file():
        if shutil.which("npm") is None:
            pytest.skip("axe-core: npm is not installed")
        folder.mkdir(parents=True, exist_ok=True)
        packed = subprocess.run(
            ["npm", "pack", AXE, "--silent"], cwd=folder, capture_output=True, text=True
        )
        if packed.returncode or not archive.is_file():
            pytest.skip(f"axe-core: npm cannot fetch it: {packed.stderr.strip()[-200:]}")
    with tarfile.open(archive) as found:
        source = found.extractfile("package/axe.min.js")
        assert source is not None
        return source.read().decode("utf-8")
