"""A real Chromium, driven by its DevTools protocol: enough to open a page, use it, and look at it."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from websockets.sync.client import connect

from tests.servers import need

_PATIENCE = 60.0


class Browser:
    """One page of a headless Chromium of 1280 × 900; `complaints` are errors and warnings of the console.

    `requests` are the addresses of all that the page asked for, itself included.
    """

    def __init__(self, folder: Path) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._count = 0
        self._log = folder / "chromium.log"
        command = [
            need("chromium"), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
            "--window-size=1280,900", f"--user-data-dir={folder / 'chromium'}", "--remote-debugging-port=0",
            "about:blank",
        ]  # fmt: skip
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            self._socket = connect(self._address(), max_size=None, proxy=None)
            target = self._send("Target.createTarget", url="about:blank")["targetId"]
            self._session = self._send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self._send(f"{domain}.enable")
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise

    _session = ""

    def _address(self) -> str:
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            found = re.search(r"DevTools listening on (ws://\S+)", self._log.read_text(errors="replace"))
            if found:
                return found[1]
            time.sleep(0.05)
        raise RuntimeError(f"Chromium did not come up:\n{self._log.read_text(errors='replace')[-2000:]}")

    def _send(self, method: str, **params: Any) -> Any:
        """What the browser answers; what it tells meanwhile is kept."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        self._socket.send(json.dumps(message | ({"sessionId": self._session} if self._session else {})))
        while True:
            answer = json.loads(self._socket.recv(timeout=_PATIENCE))
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self._told(answer.get("method", ""), answer.get("params", {}))

    def _told(self, method: str, params: Any) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(params["entry"]["text"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(params["exceptionDetails"])[:500])
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(json.dumps(params["args"])[:500])

    def open(self, file: Path, *, done: str) -> float:
        """Open a page; how many seconds it took until the JavaScript expression `done` was true, and drawn."""
        begun = time.monotonic()
        self._send("Page.navigate", url=file.as_uri())
        while not self.evaluate(done):
            if time.monotonic() - begun > _PATIENCE:
                raise RuntimeError(f"{file.name} is not done: {self.complaints}")
            time.sleep(0.01)
        self.painted()
        return time.monotonic() - begun

    def painted(self) -> None:
        """Wait until what changed is on the screen."""
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited where it is a promise."""
        answer = self._send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"])[:1000])
        return answer["result"].get("value")

    def colours(self, scheme: str) -> None:
        """Show the page as to somebody who prefers `light` or `dark`."""
        self._send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.painted()

    def move(self, x: float, y: float) -> None:
        """Point there, in pixels of the window."""
        self._send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self.painted()

    def click(self, x: float, y: float) -> None:
        """Click there."""
        self.move(x, y)
        for kind in ("mousePressed", "mouseReleased"):
            self._send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        self.painted()

    def screenshot(self, file: Path, *, whole: bool = False) -> None:
        """What is in sight, or the whole page, as PNG."""
        image = self._send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        file.write_bytes(base64.b64decode(image))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._session = ""
            self._send("Browser.close")
            self._socket.close()
            self._process.wait(20)
        except Exception:  # noqa: BLE001 - it must end, however it is
            self._process.kill()
            self._process.wait()
