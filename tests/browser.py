"""Headless Chromium for tests: opens a page, asks it, presses its keys (DevTools protocol)."""

import asyncio
import json
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp
import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 30  # seconds that anything may take


def program() -> str:
    """Chromium's; the test is skipped on a machine without."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no Chromium")
    return found


class Page:
    """One page in a browser of its own.

    Attributes:
        errors: exceptions that nobody caught, and what the console was told as an error.
    """

    def __init__(self, url: str, scratch: Path) -> None:
        self.errors: list[str] = []
        self._count, self._loop = 0, asyncio.new_event_loop()
        line = [program(), "--headless", "--no-sandbox", "--disable-gpu", "--mute-audio"]
        line += [
            "--remote-debugging-port=0",
            f"--user-data-dir={scratch}",
            "--window-size=1200,900",
        ]
        line += ["--autoplay-policy=no-user-gesture-required", "about:blank"]
        self._process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            self._do(self._connect(scratch / "DevToolsActivePort"))
            for name in ("Runtime", "Log", "Page"):
                self._do(self._call(f"{name}.enable"))
            self._do(self._call("Page.navigate", url=url))
            self.until("document.readyState === 'complete' && location.href !== 'about:blank'")
        except BaseException:
            self.close()
            raise

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives, waited for if it is a promise."""
        said = self._do(
            self._call(
                "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
            )
        )
        if "exceptionDetails" in said:
            raise AssertionError(said["exceptionDetails"])
        return said["result"].get("value")

    def until(self, expression: str) -> None:
        """Waits until it is true."""
        end = time.monotonic() + PATIENCE
        while not self.value(f"Boolean({expression})"):
            assert time.monotonic() < end, f"never came true: {expression}"
            time.sleep(0.05)

    def press(self, key: str) -> None:
        """A key that types one sign."""
        for kind in ("keyDown", "keyUp"):
            self._do(self._call("Input.dispatchKeyEvent", type=kind, key=key, text=key))

    def click(self, selector: str) -> None:
        """The middle of the first element that a selector finds."""
        box = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        x, y = self.value(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({box})")
        for kind in ("mousePressed", "mouseReleased"):
            event = {"type": kind, "x": x, "y": y, "button": "left", "clickCount": 1}
            self._do(self._call("Input.dispatchMouseEvent", **event))

    def close(self) -> None:
        if hasattr(self, "_session"):
            self._do(self._session.close())
        self._process.terminate()
        self._process.wait()
        self._loop.close()

    def __enter__(self) -> "Page":
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _do(self, what: Any) -> Any:
        return self._loop.run_until_complete(asyncio.wait_for(what, PATIENCE))

    async def _connect(self, file: Path) -> None:
        while not file.is_file() or not file.read_text():
            assert self._process.poll() is None, "Chromium has ended"
            await asyncio.sleep(0.05)
        port = file.read_text().split()[0]
        self._session = aiohttp.ClientSession()
        while True:
            async with self._session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                pages = [one for one in await answer.json() if one["type"] == "page"]
            if pages:
                break
            await asyncio.sleep(0.05)
        self._socket = await self._session.ws_connect(
            pages[0]["webSocketDebuggerUrl"], max_msg_size=0
        )

    async def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        await self._socket.send_json({"id": self._count, "method": method, "params": parameters})
        while True:
            said = await self._socket.receive_json()
            self._note(said)
            if said.get("id") == self._count:
                assert "error" not in said, said["error"]
                return said["result"]

    def _note(self, said: dict[str, Any]) -> None:
        told = said.get("params", {})
        if said.get("method") == "Runtime.exceptionThrown":
            self.errors.append(told["exceptionDetails"].get("text", ""))
        elif said.get("method") == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.errors.append(f"{told['entry']['text']} {told['entry'].get('url', '')}".strip())
