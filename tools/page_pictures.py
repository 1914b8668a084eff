"""`make pictures`: takes the pictures of the page in docs, of a real server with the default model."""

import asyncio

from tests.e2e.server_process import ServerProcess
from tests.support.browser import Browser
from tools.generated_docs import DOCS


async def _take(url: str) -> None:
    async with Browser(width=1080, height=760) as browser:
        await browser.open_chat(url)
        await browser.fill("temperature", "0")
        for question in ("What is the capital of France?", "Write a Python function that adds two numbers."):
            await browser.ask(question)
        (DOCS / "chat-page.png").write_bytes(await browser.picture())
        await browser.click("#status-tab")
        await browser.wait_for("document.querySelector('.card b').textContent === '0'")
        (DOCS / "status-page.png").write_bytes(await browser.picture())


arguments = ["--served-model-name", "SmolLM2-135M-Instruct", "--max-model-len", "2048", "--dtype", "float32"]
with ServerProcess(arguments) as server:
    asyncio.run(_take(f"{server.url}/"))
