"""Runs Debian's Chromium headless, and controls it by the DevTools protocol."""

import asyncio
import base64
import itertools
import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Final, Self

import aiohttp

from base.status_page.page import DATA_PATH, read_page
from tests.support.http_server import Request, ScriptedServer
from tests.support.marks import needs_tool

_PATIENT_S: Final = 120.0
_EXECUTABLE: Final = shutil.which("chromium")
_FLAGS: Final = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-port=0"),
)
_KEY_CODES: Final = {"Enter": {"windowsVirtualKeyCode": 13}, "Escape": {"windowsVirtualKeyCode": 27}}
needs_browser = needs_tool("chromium")


class Tab:
    def __init__(self) -> None:
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self.errors: list[str] = []
        """Errors of scripts, violations of the content security policy and failed requests."""

    async def connect(self, session: aiohttp.ClientSession, address: str) -> None:
        self._socket = await session.ws_connect(address, max_msg_size=0)
        self._reading = asyncio.create_task(self._read())
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self._call(f"{domain}.enable")

    async def disconnect(self) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self._socket.close()

    async def open(self, url: str) -> None:
        """Opens the page without waiting for its scripts."""
        await self._call("Page.navigate", url=url)

    async def evaluate(self, expression: str, *, is_promise: bool = False) -> Any:
        """Evaluates a JavaScript expression in the page. With `is_promise`, returns the promise's value."""
        answer = await self._call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=is_promise
        )
        return answer["result"].get("value")

    async def processor_s(self, expression: str) -> float:
        """Seconds of processor time in which the page's main thread evaluates the expression.

        Unlike the time of a clock, it is the same beside busy processes.
        """
        await self._call("Performance.enable", timeDomain="threadTicks")
        begin_s = await self._thread_s()
        await self.evaluate(expression)
        return await self._thread_s() - begin_s

    async def _thread_s(self) -> float:
        metrics = (await self._call("Performance.getMetrics"))["metrics"]
        return float(next(each["value"] for each in metrics if each["name"] == "ThreadTime"))

    async def wait_for(self, expression: str) -> None:
        async with asyncio.timeout(_PATIENT_S):
            while not await self.evaluate(expression):
                await asyncio.sleep(0.05)

    async def click(self, selector: str) -> None:
        await self.evaluate(f"document.querySelector({json.dumps(selector)}).click()")

    async def press(self, *keys: str) -> None:
        """Presses Enter and Escape, and inserts other words as text."""
        for key in keys:
            if key not in _KEY_CODES:
                await self._call("Input.insertText", text=key)
                continue
            text = "\r" if key == "Enter" else ""
            for kind in ("keyDown", "keyUp"):
                await self._call("Input.dispatchKeyEvent", type=kind, key=key, text=text, **_KEY_CODES[key])

    async def picture(self) -> bytes:
        """What the tab shows, as PNG."""
        return base64.b64decode((await self._call("Page.captureScreenshot"))["data"])

    async def _call(self, method: str, **params: Any) -> Any:
        number = next(self._ids)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": params})
        async with asyncio.timeout(_PATIENT_S):
            return await answer

    async def _read(self) -> None:
        async for frame in self._socket:
            message = json.loads(frame.data)
            if "id" in message:
                answer = self._answers.pop(message["id"])
                if not answer.done():
                    answer.set_result(message.get("result", {}))
            elif message["method"] == "Log.entryAdded":
                self.errors.append(message["params"]["entry"]["text"])
            elif message["method"] == "Runtime.exceptionThrown":
                self.errors.append(str(message["params"]["exceptionDetails"]))

    # --- The chat of the page ---

    async def open_chat(self, url: str) -> None:
        await self.open(url)
        await self.wait_for("!document.querySelector('#chat').hidden")

    async def fill(self, name: str, value: str) -> None:
        await self.evaluate(f"$('{name}').value = {json.dumps(value)}; $('{name}').dispatchEvent(new Event('input'))")

    async def send(self, text: str) -> None:
        await self.evaluate(f"$('prompt').value = {json.dumps(text)}; $('send').click()")

    async def ask(self, text: str) -> str:
        """Sends a message. Returns the text in the answer's box once the answer is complete."""
        await self.send(text)
        await self.wait_for("$('stop').hidden")
        return str(await self.evaluate("$('talk').lastChild.innerText"))


class Browser(Tab):
    """A browser and its first tab. The end of the `async with` block ends the browser."""

    def __init__(self, *, width: int = 1080, height: int = 1000, scheme: str = "light") -> None:
        """`scheme` is `light` or `dark`."""
        super().__init__()
        self._scheme = {"name": "prefers-color-scheme", "value": scheme}
        self._size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._others: list[Tab] = []

    async def __aenter__(self) -> Self:
        assert _EXECUTABLE is not None
        self._process = subprocess.Popen(
            [_EXECUTABLE, *_FLAGS, f"--user-data-dir={self._folder.name}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._session = aiohttp.ClientSession()
        await self.connect(self._session, await self._find_page())
        await self._call("Emulation.setDeviceMetricsOverride", **self._size)  # a window has at least 500 pixels
        await self._call("Emulation.setEmulatedMedia", features=[self._scheme])
        return self

    async def __aexit__(self, *_: object) -> None:
        for tab in (self, *self._others):
            await tab.disconnect()
        await self._session.close()
        self._process.terminate()
        self._process.wait(_PATIENT_S)
        self._folder.cleanup()

    async def open_tab(self) -> Tab:
        async with self._session.put(f"{self._devtools}/json/new?about:blank") as response:
            page = await response.json(content_type=None)
        tab = Tab()
        await tab.connect(self._session, page["webSocketDebuggerUrl"])
        self._others.append(tab)
        return tab

    async def _find_page(self) -> str:
        file = Path(self._folder.name) / "DevToolsActivePort"
        async with asyncio.timeout(_PATIENT_S):
            while not file.exists() or not file.read_text().strip():
                assert self._process.poll() is None, "the browser ended"
                await asyncio.sleep(0.05)
            self._devtools = f"http://127.0.0.1:{file.read_text().split()[0]}"
            while True:
                async with self._session.get(f"{self._devtools}/json/list") as response:
                    pages = [page for page in await response.json(content_type=None) if page["type"] == "page"]
                if pages:
                    return str(pages[0]["webSocketDebuggerUrl"])
                await asyncio.sleep(0.05)


class PageServer(ScriptedServer):
    """Serves the page at `/` with a status that the test writes. A subclass answers what the page posts."""

    def __init__(self, status: dict[str, Any]) -> None:
        super().__init__(self._decide)
        self.status = status
        self.posts: list[Request] = []

    def _decide(self, request: Request) -> tuple[Any, ...]:
        if request.method == "POST":
            self.posts.append(request)
            return self.answer_post(request)
        if (answer := self.answer_get(request)) is not None:
            return answer
        page = read_page()
        headers = {"Content-Type": "text/html; charset=utf-8", **dict(page.headers)}
        return (200, self.status) if request.path == DATA_PATH else (200, page.body, headers)

    def answer_get(self, request: Request) -> tuple[Any, ...] | None:
        """The answer to a GET. None for page and status."""

    def answer_post(self, request: Request) -> tuple[Any, ...]:
        raise NotImplementedError
