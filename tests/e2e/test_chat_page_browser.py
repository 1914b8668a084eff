"""The chat of the page at `/` in a browser, with real servers and with answers that a test writes."""

import asyncio
import json
import subprocess
import tarfile
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tests.e2e.server_process import ServerProcess
from tests.support.browser import Browser, PageServer, Tab, needs_browser
from tests.support.debian_tools import require_tool
from tests.support.http_server import Request, serving

pytestmark = [pytest.mark.slow, needs_browser]
_AXE = "axe-core@4.14.1"
_MARKUP = "<img src=x onerror=document.title='hacked'>"
_HOSTILE = f"""# {_MARKUP}

{_MARKUP} [link](javascript:document.title='hacked') ![image](http://127.0.0.1:9/track.png)

<script>document.title='hacked'</script>

```html
{_MARKUP}
```

| a | b |
|---|---|
| **bold** | `{_MARKUP}` |

- [x] one
- two & three
"""
_IS_READY = "!document.querySelector('#chat').hidden"
_HAS_ENDED = "document.querySelector('#stop').hidden && document.querySelectorAll('.message').length === {count}"
_LAST = "[...document.querySelectorAll('.message')].at(-1)"
_STATUS: dict[str, Any] = {
    "status": "ready", "model": "small", "version": "1", "needs_key": False, "modalities": ["text", "image"],
    "error": None, "progress": None, "live": {"uptime_s": 1.0}, "start": None,
}  # fmt: skip


async def _open(tab: Tab, url: str) -> None:
    """Opens the page, and waits for its chat."""
    await tab.open(url)
    await tab.wait_for(_IS_READY)


async def _send(browser: Tab, text: str) -> None:
    await browser.evaluate(f"document.querySelector('#prompt').value = {json.dumps(text)}")
    await browser.evaluate("document.querySelector('#send').click()")


async def _type(browser: Browser, name: str, value: str) -> None:
    """Types the value of a setting."""
    script = (
        f"field = document.getElementById('{name}'); field.value = '{value}'; field.dispatchEvent(new Event('input'))"
    )
    await browser.evaluate(f"{{ const {script} }}")


async def _ask(browser: Browser, text: str, *, count: int = 2) -> str:
    """Sends a message. Returns the text in the answer's box once the answer is complete."""
    await _send(browser, text)
    await browser.wait_for(_HAS_ENDED.format(count=count))
    return str(await browser.evaluate(f"{_LAST}.innerText"))


async def test_a_chat_with_a_real_model_and_its_next_visit(start_server):
    with start_server("--max-model-len", "1024") as server:
        async with Browser() as browser:
            await _open(browser, f"{server.url}/")
            for name, value in (("temperature", "0"), ("max-tokens", "12"), ("system", "You are brief.")):
                await _type(browser, name, value)
            answer = await _ask(browser, "What is the capital of France?")
            assert "12 tokens" in answer
            assert "ended at its most tokens" in answer
            begun = await browser.evaluate(f"{_LAST}.querySelector('.text').textContent")
            await browser.evaluate(f"{_button('continue', -1)}.click()")
            await browser.wait_for(f"{_HAS_ENDED.format(count=2)} && {_LAST}.innerText.includes('12 tokens')")
            text = await browser.evaluate(f"{_LAST}.querySelector('.text').textContent")
            assert text.startswith(begun.strip())
            assert len(text) > len(begun)
            assert await browser.evaluate(f"{_LAST}.querySelector('b').textContent") == "smol"
            await browser.open(f"{server.url}/")
            await browser.wait_for("document.querySelectorAll('.message').length === 2")
            assert await browser.evaluate(f"{_LAST}.querySelector('.text').textContent") == text
            assert await browser.evaluate("document.querySelector('#system').value") == "You are brief."
            assert browser.errors == []


async def test_two_tabs_have_a_conversation_each(start_tiny_server):
    with start_tiny_server("--max-model-len", "256") as server:
        async with Browser() as browser:
            first, second = browser, await browser.open_tab()
            for tab in (first, second):
                await _open(tab, f"{server.url}/")
            await asyncio.gather(_send(first, "one"), _send(second, "two"))
            for tab in (first, second):
                await tab.wait_for(_HAS_ENDED.format(count=2))
            said = [
                await tab.evaluate("document.querySelector('.message.user .text').textContent")
                for tab in (first, second)
            ]
            assert said == ["one", "two"]
            titles = "[...document.querySelectorAll('#talks option')].map(option => option.textContent).sort()"
            await first.wait_for(f'JSON.stringify({titles}) === \'["one","two"]\'')


async def test_a_wrong_key_is_said_and_the_right_one_stays_in_the_tab(start_tiny_server):
    words = ("--api-key", "right-key-for-a-test", "--max-model-len", "256")
    with start_tiny_server(*words) as server:
        async with Browser() as browser:
            await browser.open(f"{server.url}/")
            await browser.wait_for("!document.querySelector('#key-form').hidden")
            await _type(browser, "key", "wrong")
            assert "The API key is not one of the server's" in await _ask(browser, "hello")
            await _type(browser, "key", "right-key-for-a-test")
            assert "tokens" in await _ask(browser, "hello", count=4)
            other = await browser.open_tab()
            await other.open(f"{server.url}/")
            await other.wait_for(_IS_READY)
            assert await other.evaluate("document.querySelector('#key').value") == ""
            stored = await browser.evaluate("JSON.stringify(Object.entries(localStorage))")
            assert "right-key" not in stored


async def test_a_router_has_a_choice_of_models_with_their_buttons(tiny_llama, tmp_path):
    models = {name: {"model": str(tiny_llama), "args": {"max-model-len": 256}} for name in ("first", "second")}
    file = tmp_path / "models.yaml"
    file.write_text(json.dumps({"models": models}))
    with ServerProcess(["--models", str(file)]) as server:
        async with Browser() as browser:
            await browser.open(f"{server.url}/")
            await browser.wait_for("document.querySelectorAll('#chat-model option').length === 2")
            await browser.evaluate("document.querySelector('#chat-model').selectedIndex = 1")
            await browser.wait_for("document.querySelector('#chat-state').textContent === 'stopped'")
            assert "tokens" in await _ask(browser, "hello")
            await browser.wait_for("document.querySelector('#chat-state').textContent === 'ready'")
            unload = (
                "[...document.querySelectorAll('.line > button:not([hidden])')].find(b => b.textContent === 'unload')"
            )
            await browser.wait_for(f"{unload} !== undefined")
            await browser.evaluate(f"{unload}.click()")
            await browser.wait_for("document.querySelector('#chat-state').textContent === 'stopped'")


class _Written(PageServer):
    """Answers a chat with the events of a test."""

    def __init__(self) -> None:
        super().__init__(_STATUS)
        self.deltas: list[dict[str, Any]] = []
        self.is_broken_off = False

    def answer_post(self, request: Request) -> tuple[Any, ...]:
        events = [": the model starts", *(f"data: {json.dumps({'choices': [{'delta': one}]})}" for one in self.deltas)]
        if not self.is_broken_off:
            events += ['data: {"choices": [], "usage": {"completion_tokens": 7}}', "data: [DONE]"]
        return 200, "\n\n".join([*events, ""]).encode(), {"Content-Type": "text/event-stream"}


@pytest.fixture
def written() -> Iterator[_Written]:
    with serving(_Written()) as server:
        yield server


@pytest.fixture
async def browser(written: _Written) -> AsyncIterator[Browser]:
    """A browser that shows the chat of `written`."""
    async with Browser() as browser:
        await _open(browser, written.url)
        yield browser


async def test_markup_of_a_model_stays_text(written, browser):
    written.deltas = [{"reasoning": f"think {_MARKUP}"}, *({"content": char} for char in _HOSTILE)]
    await _ask(browser, _MARKUP)
    assert await browser.evaluate("document.querySelectorAll('.message img, .message script').length") == 0
    assert await browser.evaluate("[...document.querySelectorAll('.message a')].map(a => a.href)") == [
        "http://127.0.0.1:9/track.png"
    ]
    assert await browser.evaluate("document.title") == "ready – small"
    assert await browser.evaluate(f"{_LAST}.querySelector('pre').textContent") == _MARKUP
    assert await browser.evaluate(f"{_LAST}.querySelector('td strong').textContent") == "bold"
    assert await browser.evaluate(f"{_LAST}.querySelectorAll('li').length") == 2
    assert not await browser.evaluate(f"{_LAST}.querySelector('details').open")
    assert _MARKUP in await browser.evaluate(f"{_LAST}.querySelector('details').textContent")
    assert browser.errors == []


async def test_a_stream_without_its_end_is_a_fault_and_is_asked_again(written, browser):
    written.deltas, written.is_broken_off = [{"content": "half"}], True
    assert "broke off" in await _ask(browser, "hello")
    written.is_broken_off = False
    await browser.evaluate(f"[...{_LAST}.querySelectorAll('button')].find(b => b.textContent === 'again').click()")
    await browser.wait_for(f"{_LAST}.innerText.includes('7 tokens')")
    assert [message["content"] for message in written.posts[1].json["messages"]] == ["hello"]


def _button(name: str, number: int) -> str:
    """The visible button of this name at a message."""
    return f"[...document.querySelectorAll('.message')].at({number}).querySelector('.{name}')"


_NUM_MESSAGES = "document.querySelectorAll('.message').length"


async def test_a_message_is_edited_and_an_answer_is_continued(written, browser):
    written.deltas = [{"content": "Paris"}]
    assert await browser.evaluate("document.activeElement.id") == "prompt"
    await _ask(browser, "capitl?")
    await browser.evaluate(f"{_button('edit', 0)}.click()")
    assert await browser.evaluate(_NUM_MESSAGES) == 0
    assert await browser.evaluate("document.querySelector('#prompt').value") == "capitl?"
    await _ask(browser, "capital?")
    written.deltas = [{"content": " is it."}]
    await browser.evaluate(f"{_button('continue', -1)}.click()")
    await browser.wait_for(f"{_LAST}.querySelector('.text').textContent === 'Paris is it.'")
    assert [message["content"] for message in written.posts[-1].json["messages"]] == ["capital?", "Paris"]
    assert written.posts[-1].json["continue_final_message"]
    assert not written.posts[-1].json["add_generation_prompt"]
    assert await browser.evaluate(_NUM_MESSAGES) == 2
    assert browser.errors == []


async def test_nothing_is_lost_without_a_question(written, browser):
    written.deltas = [{"content": "yes"}]
    for count in (2, 4):
        await _ask(browser, "really?", count=count)
    names = "[...document.querySelectorAll('.message > b')].filter(b => !b.hidden).map(b => b.textContent)"
    assert await browser.evaluate(names) == ["small"]
    await browser.evaluate("asked = []; answer = false; confirm = (text) => { asked.push(text); return answer; }")
    await browser.evaluate("URL.createObjectURL = (blob) => { exported = blob.text(); return '#'; }")
    for click in (_button("again", 1), _button("edit", 0), "document.querySelector('#delete-talk')"):
        await browser.evaluate(f"{click}.click()")
    assert await browser.evaluate(_NUM_MESSAGES) == 4
    assert len(await browser.evaluate("asked")) == 3
    await browser.evaluate("document.querySelector('#export-talk').click()")
    text = await browser.evaluate("exported", is_promise=True)
    assert text == "\n".join(["## user\n\nreally?\n", "## assistant\n\nyes\n"] * 2)
    await browser.evaluate(f"answer = true; {_button('again', 1)}.click()")
    await browser.wait_for(_HAS_ENDED.format(count=2))
    await browser.evaluate("document.querySelector('#delete-talk').click()")
    assert await browser.evaluate(_NUM_MESSAGES) == 0


async def test_code_is_highlighted(written, browser):
    code = "def f(x):  # a // b\n    return 'it\\'s' + str(7 // x)"
    written.deltas = [{"content": f"```python\n{code}\n```\n\n```\ndef\n```"}]
    await _ask(browser, "code?")
    assert await browser.evaluate("document.querySelector('pre').textContent") == code
    spans = "[...document.querySelectorAll('pre span')].map(span => [span.className, span.textContent])"
    assert await browser.evaluate(spans) == [
        ["keyword", "def"], ["comment", "# a // b"], ["keyword", "return"], ["string", "'it\\'s'"], ["number", "7"],
    ]  # fmt: skip


async def test_an_image_is_sent_as_data(written, browser):
    written.deltas = [{"content": "a dot"}]
    await browser.evaluate(
        "const data = new DataTransfer(); data.items.add(new File([new Uint8Array([1, 2, 3])], 'a.png', "
        "{ type: 'image/png' })); const input = document.querySelector('#attach'); input.files = data.files; "
        "input.dispatchEvent(new Event('change'))"
    )
    await browser.wait_for("document.querySelectorAll('#pending img').length === 1")
    await _ask(browser, "what is this?")
    image, text = written.posts[0].json["messages"][0]["content"]
    assert image["image_url"]["url"] == "data:image/png;base64,AQID"
    assert text == {"type": "text", "text": "what is this?"}


@pytest.mark.parametrize("width", [380, 1080])
async def test_the_page_is_accessible_and_fits_a_phone(written, axe, width):
    written.deltas = [{"reasoning": "think"}, {"content": _HOSTILE}]
    async with Browser(width=width) as browser:
        await _open(browser, written.url)
        await _ask(browser, "hello " * 100)
        await browser.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true; })")
        await browser.evaluate(f"{axe}; true")
        for tab in ("chat", "status"):
            await browser.evaluate(f"document.querySelector('#{tab}-tab').click()")
            findings = "axe.run().then(found => found.violations.map(({id, nodes}) => [id, nodes[0].html]))"
            assert await browser.evaluate(findings, is_promise=True) == []
            assert await browser.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The script of axe-core, from the npm registry."""
    require_tool("npm")
    folder = tmp_path_factory.mktemp("axe")
    try:
        subprocess.run(["npm", "pack", _AXE], cwd=folder, check=True, capture_output=True, timeout=120)
    except subprocess.SubprocessError:
        pytest.skip("npm's registry does not answer")
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        return archive.extractfile("package/axe.min.js").read().decode()  # type: ignore[union-attr]
