"""The chat of the page at `/` in a browser, with real servers and with answers that a test writes."""

import asyncio
import json
import subprocess
import tarfile
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tests.e2e.server_process import ServerProcess
from tests.support.browser import Browser, PageServer, needs_browser
from tests.support.http_server import Request, serving
from tests.support.marks import require_tool

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
_LAST = "$('talk').lastChild"
_LIVE = (
    "uptime_s time_s num_running num_waiting kv_cache_usage prefix_cache_queries prompt_tokens generation_tokens "
    "loop_lag_p50_s loop_lag_p99_s loop_lag_max_s memory_bytes"
)
_STATUS: dict[str, Any] = {
    "status": "ready", "model": "small", "version": "1", "needs_key": False, "modalities": ["text", "image"],
    "error": None, "progress": None, "live": dict.fromkeys(_LIVE.split(), 1),
    "start": {"outcome": "ready", "total_s": 1.0, "phases": [], "spans": [], "marks": {}},
}  # fmt: skip
_OLD = """{"id": "1-2", "model": "old", "system": "Be brief.", "temperature": "0", "maxTokens": "5", "changed": 0,
"messages": [{"role": "user", "text": "old question"}, {"role": "assistant", "text": "old answer", "model": "old",
"note": "…"}]}"""
"""A conversation as version 0.4 of the page has kept it."""
_TITLES = "JSON.stringify([...document.querySelectorAll('.title')].map(title => title.textContent))"
_NUM_MESSAGES = "$('talk').children.length"


async def _attach(browser: Browser, field: str, name: str, content: bytes) -> None:
    await browser.evaluate(
        f"{{ const data = new DataTransfer(), file = new File([new Uint8Array({list(content)})], '{name}', {{ type: "
        f"'{'image/png' if name.endswith('png') else ''}' }}); data.items.add(file); $('{field}').files = data.files; "
        f"$('{field}').dispatchEvent(new Event('change')) }}"
    )


async def test_a_chat_with_a_real_model_and_its_next_visit(start_server):
    with start_server("--max-model-len", "1024") as server:
        async with Browser() as browser:
            await browser.open_chat(f"{server.url}/")
            for name, value in (("temperature", "0"), ("max-tokens", "12"), ("system", "You are brief.")):
                await browser.fill(name, value)
            answer = await browser.ask("What is the capital of France?")
            assert "12 tokens" in answer
            assert "stopped at the token limit" in answer
            context = "$('context').textContent"
            await browser.wait_for(f"/^Context: [0-9]+ of 1,024 tokens$/.test({context})")
            begun = await browser.evaluate(f"{_LAST}.querySelector('.text').textContent")
            await browser.evaluate(f"{_button('continue', -1)}.click()")
            await browser.wait_for(f"$('stop').hidden && {_LAST}.innerText.includes('12 tokens')")
            text = await browser.evaluate(f"{_LAST}.querySelector('.text').textContent")
            assert text.startswith(begun.strip())
            assert len(text) > len(begun)
            assert await browser.evaluate(f"{_LAST}.querySelector('b').textContent") == "smol"
            await browser.open(f"{server.url}/")
            await browser.wait_for("$('talk').children.length === 2")
            assert await browser.evaluate(f"{_LAST}.querySelector('.text').textContent") == text
            assert await browser.evaluate("$('system').value") == "You are brief."
            assert browser.errors == []


async def test_two_tabs_have_a_conversation_each(start_tiny_server):
    with start_tiny_server("--max-model-len", "256") as server:
        async with Browser() as browser:
            first, second = browser, await browser.open_tab()
            for tab in (first, second):
                await tab.open_chat(f"{server.url}/")
            await asyncio.gather(first.send("one"), second.send("two"))
            for tab in (first, second):
                await tab.wait_for("$('stop').hidden")
            said = [await tab.evaluate("$('talk').firstChild.innerText") for tab in (first, second)]
            assert [text.split()[0] for text in said] == ["one", "two"]
            await first.click("#list-talks")
            assert set(json.loads(await first.evaluate(_TITLES))) == {"one", "two"}


async def test_a_wrong_key_is_said_and_the_right_one_stays_in_the_tab(start_tiny_server):
    words = ("--api-key", "right-key-for-a-test", "--max-model-len", "256")
    with start_tiny_server(*words) as server:
        async with Browser() as browser:
            await browser.open(f"{server.url}/")
            await browser.wait_for("!$('key-form').hidden")
            await browser.fill("key", "wrong")
            assert "The API key is not one of the server's" in await browser.ask("hello")
            await browser.fill("key", "right-key-for-a-test")
            assert "tokens" in await browser.ask("hello")
            other = await browser.open_tab()
            await other.open_chat(f"{server.url}/")
            assert await other.evaluate("$('key').value") == ""
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
            await browser.evaluate("$('chat-model').selectedIndex = 1")
            await browser.wait_for("$('chat-state').textContent === 'stopped'")
            assert "tokens" in await browser.ask("hello")
            await browser.wait_for("$('chat-state').textContent === 'ready'")
            await browser.wait_for("document.querySelector('#chat-bar [aria-label^=unload]:not([hidden])') !== null")
            await browser.click("#chat-bar [aria-label^=unload]")
            await browser.wait_for("$('chat-state').textContent === 'stopped'")


class _Written(PageServer):
    """Answers a chat with the events of a test."""

    def __init__(self) -> None:
        super().__init__(_STATUS)
        self.deltas: list[dict[str, Any]] = []
        self.is_broken_off = False
        self.refusal: Any = None

    def answer_post(self, request: Request) -> Any:
        if self.refusal is not None:
            return self.refusal
        events = [": the model starts", *(f"data: {json.dumps({'choices': [{'delta': one}]})}" for one in self.deltas)]
        if not self.is_broken_off:
            events += ['data: {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7}}', "data: [DONE]"]
        return 200, "\n\n".join([*events, ""]).encode(), {"Content-Type": "text/event-stream"}


def _never_end(handler: Any) -> None:
    """Sends the beginning of an answer, and waits until the browser closes the connection."""
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(b'data: {"choices": [{"delta": {"content": "half"}}]}\n\n')
    handler.rfile.read(1)


@pytest.fixture
def written() -> Iterator[_Written]:
    with serving(_Written()) as server:
        yield server


@pytest.fixture
async def browser(written: _Written) -> AsyncIterator[Browser]:
    """A browser that shows the chat of `written`."""
    async with Browser() as browser:
        await browser.open_chat(written.url)
        yield browser


async def test_markup_of_a_model_stays_text(written, browser):
    written.deltas = [{"reasoning": f"think {_MARKUP}"}, *({"content": char} for char in _HOSTILE)]
    await browser.ask(_MARKUP)
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


def _button(name: str, number: int) -> str:
    return f"[...document.querySelectorAll('.message')].at({number}).querySelector('.{name}')"


async def test_a_question_that_fails_is_not_sent_with_the_next_and_a_broken_answer_is_asked_again(written, browser):
    error = {"error": {"message": "too long"}}
    faults = (400, error), (502, b"bad"), (200, f"data: {json.dumps(error)}\n".encode()), (200, b": the model starts\n")
    for written.refusal in faults:
        assert "are sent without this question" in await browser.ask("fault")
    written.refusal, written.deltas, written.is_broken_off = None, [{"content": "half"}], True
    assert "broke off" in await browser.ask("hello")
    written.is_broken_off = False
    await browser.evaluate(f"{_button('again', -1)}.click()")
    await browser.wait_for(f"{_LAST}.innerText.includes('7 tokens')")
    assert [message["content"] for message in written.posts[-1].json["messages"]] == ["hello"]


async def test_messages_are_cut_when_their_edit_is_sent_and_an_answer_is_continued(written, browser):
    written.deltas, prompt = [{"content": "Paris"}], "$('prompt').value"
    assert await browser.evaluate("document.activeElement.id") == "prompt"
    for _ in range(2):
        await browser.ask("capitl?")
    await browser.press("a draft")
    await browser.evaluate(f"{_button('edit', 0)}.click()")
    assert await browser.evaluate(prompt) == "capitl?"
    assert "replaces message 1 and removes 3" in await browser.evaluate("$('editing').innerText")
    await browser.press("Escape")
    assert await browser.evaluate(f"{prompt} + {_NUM_MESSAGES}") == "a draft4"
    await browser.evaluate(f"{_button('edit', 0)}.click(); $('prompt').select()")
    await browser.press("capital?")
    assert await browser.evaluate(_NUM_MESSAGES) == 4
    await browser.press("Enter")
    await browser.wait_for(f"$('stop').hidden && {_NUM_MESSAGES} === 2")
    assert await browser.evaluate(prompt) == "a draft"
    written.deltas = [{"content": " is it."}]
    assert await browser.evaluate(f"{_button('continue', -1)}.ariaLabel") == "continue message 2"
    await browser.evaluate(f"{_button('continue', -1)}.click()")
    await browser.wait_for(f"{_LAST}.querySelector('.text').textContent === 'Paris is it.'")
    assert [message["content"] for message in written.posts[-1].json["messages"]] == ["capital?", "Paris"]
    assert written.posts[-1].json["continue_final_message"]
    assert not written.posts[-1].json["add_generation_prompt"]
    assert browser.errors == []


@pytest.mark.parametrize("leaves", ["$('new-talk').click()", "location.reload()"])
async def test_an_answer_that_a_user_leaves_keeps_its_text_and_the_draft_stays(written, browser, leaves):
    written.refusal = _never_end
    await browser.fill("seed", "7")
    await browser.send("one")
    await browser.wait_for(f"{_LAST}?.querySelector('.text').innerText.trim() === 'half'")
    await browser.press("a draft")
    await browser.evaluate(leaves)
    await browser.wait_for("!$('chat').hidden && $('stop').hidden")
    assert await browser.evaluate("$('prompt').value") == "a draft"
    assert await browser.evaluate("$('seed').value") == "7"
    await browser.click("#list-talks")
    await browser.click(".title")
    assert await browser.evaluate(f"{_LAST}.querySelector('.text').innerText.trim()") == "half"
    assert await browser.evaluate(f"{_LAST}.querySelector('.under small').textContent") == "stopped"
    assert not await browser.evaluate(f"{_LAST}.querySelector('.failed') !== null")


async def test_images_of_a_file_are_only_those_that_it_contains(written, browser):
    """Otherwise the server, or the browser, would request any address that a file names."""
    pixel = "data:image/png;base64,iVBORw0KGgo="
    others = [
        "http://127.0.0.1:9/x.png",
        "//h/x",
        "file:///etc/passwd",
        "data:text/html,x",
        "blob:x",
        "javascript:1",
        "",
    ]
    images = [*others, f" {pixel}", pixel, 5, None]
    said = [{"role": "user", "text": "look", "images": images}, {"role": "assistant", "text": "seen", "finish": "stop"}]
    kept = {"id": "1-2", "messages": said}
    await _attach(browser, "import-talks", "all.json", json.dumps([kept]).encode())
    await browser.wait_for("$('talks-notice').textContent === '1 of 1 chats were new.'")
    await browser.click("#list-talks")
    await browser.click(".title")
    assert json.loads(
        await browser.evaluate("JSON.stringify([...document.querySelectorAll('img')].map(i => i.src))")
    ) == [pixel]
    written.deltas = [{"content": "yes"}]
    await browser.ask("again?")
    assert [part["type"] for part in written.posts[-1].json["messages"][0]["content"]] == ["image_url", "text"]


async def test_two_tabs_with_one_conversation_lose_no_message(written, browser):
    written.deltas = [{"content": "yes"}]
    await browser.ask("one")
    other = await browser.open_tab()
    await other.open_chat(written.url)
    await other.click("#list-talks")
    await other.click(".title")
    written.refusal = _never_end
    await browser.send("two")
    await browser.wait_for(f"{_LAST}?.querySelector('.text').innerText.trim() === 'half'")
    written.refusal = None
    await other.ask("three")
    await browser.click("#stop")
    await browser.wait_for("$('stop').hidden")
    assert "Another tab has gone on with this chat" in await browser.evaluate("$('notice').textContent")
    stored = "JSON.stringify(Object.entries(localStorage).filter(([name]) => name.startsWith('vllm-cli chat ')))"
    text = await browser.evaluate(stored)
    assert all(text.count(f'\\"text\\":\\"{said}\\"') >= 1 for said in ("two", "half", "three", "yes")), text
    await browser.evaluate("location.reload()")
    await browser.wait_for(f"{_NUM_MESSAGES} === 4")


_PATTERNS = [
    "a_",
    "_*a",
    "*_a",
    "a~_",
    "[*a",
    "__a",
    "x*y*_z_",
    "> ",
    ">",
    "1. ",
    "- ",
    "~a",
    "`a",
    "<a ",
    "![",
    "](",
    "\\",
]


@pytest.mark.parametrize("pattern", _PATTERNS)
async def test_markdown_of_a_model_is_divided_in_linear_time(browser, pattern):
    """Compares the least times of several rounds. What grows with the square takes 16 times as long."""
    code = f"""(() => {{
        const cost = (size) => Math.min(...[1, 2, 3].map(() => {{
            const text = {json.dumps(pattern)}.repeat(size), begin = performance.now();
            drawMarkdown(text);
            return performance.now() - begin;
        }}));
        cost(2000);
        return JSON.stringify([cost(8000), cost(32000)]);
    }})()"""
    short, long = json.loads(await browser.evaluate(code))
    assert long <= max(10 * short, 50), (short, long)


async def test_kept_conversations_are_found_renamed_deleted_exported_and_imported(written, browser):
    await browser.evaluate(f"localStorage.setItem('vllm-cli chat 1-2', {json.dumps(_OLD)})")
    written.deltas = [{"content": "yes"}]
    for _ in range(2):
        await browser.ask("really?")
    await browser.evaluate("asked = []; answer = false; confirm = (text) => { asked.push(text); return answer; }")
    await browser.evaluate(
        "prompt = () => 'Renamed'; URL.createObjectURL = (blob) => { exported = blob.text(); return '#'; }"
    )
    await browser.evaluate(f"{_button('again', 1)}.click()")
    await browser.click("#list-talks")
    assert await browser.evaluate(_TITLES) == '["really?","old question"]'
    for button in ("rename “old question”", "export “Renamed”"):
        await browser.click(f"[aria-label='{button}']")
    text = await browser.evaluate("exported", is_promise=True)
    assert text.startswith("# Renamed\n\nModel: old\n\nDate: 1970-01-01 ")
    assert text.endswith("System prompt: Be brief.\n\n## user\n\nold question\n\n## assistant\n\nold answer\n")
    await browser.press("ANSWER")  # into the field of the search
    assert await browser.evaluate(_TITLES) == '["Renamed"]'
    await browser.click("#export-talks")
    whole = await browser.evaluate("exported", is_promise=True)
    await browser.click("[aria-label^=delete]")
    assert await browser.evaluate(f"asked.length + {_TITLES} + {_NUM_MESSAGES}") == '2["Renamed"]4'
    await browser.evaluate("answer = true")
    await browser.click("[aria-label^=delete]")
    assert await browser.evaluate(_TITLES) == "[]"
    await _attach(browser, "import-talks", "all.json", whole.encode())
    await browser.wait_for("$('talks-notice').textContent === '1 of 2 chats were new.'")
    await browser.click(".title")
    shown = await browser.evaluate(f"{_LAST}.innerText")
    assert shown.split() == ["old", "old", "answer", "stopped", "copyagaincontinue"]
    assert await browser.evaluate("$('max-tokens').value") == "5"
    await browser.evaluate(
        "for (let size = 1 << 24; size; size >>= 1) try { localStorage[size] = 'x'.repeat(size) } catch {}"
    )
    await browser.ask("more?")
    assert "storage is full" in await browser.evaluate("$('notice').textContent")
    assert browser.errors == []


async def test_code_is_highlighted(written, browser):
    code = "def f(x):  # a // b\n    return 'it\\'s' + str(7 // x)"
    quotes = '\\"' * (1 << 18)  # at a cost that grows with the square, ten minutes
    written.deltas = [{"content": f"```python\n{code}\n```\n\n```\ndef\n```\n\n```c\n{quotes}\n```"}]
    await browser.ask("code?")
    assert await browser.evaluate("document.querySelector('pre').textContent") == code
    spans = "[...document.querySelectorAll('.code:first-child span[class]')].map(it => [it.className, it.textContent])"
    assert await browser.evaluate(spans) == [
        ["keyword", "def"], ["comment", "# a // b"], ["keyword", "return"], ["string", "'it\\'s'"], ["number", "7"],
    ]  # fmt: skip


async def test_formulas_are_shown_as_written_and_columns_as_aligned(written, browser):
    formulas = [r"\(\frac{a}{b}\)", r"\[ \int x\,dx \\ - y*z*w \]", r"$$a_1*b*c\\$$", r"$\{x\}$", r"x\,dx", r"`\(1`"]
    written.deltas = [{"content": "\n\n".join([*formulas, r"\*no formula\*, $5 *or* $6", "|a|\n|-:|\n|$x|y$|"])}]
    await browser.ask("formulas?")
    shown = await browser.evaluate(f"[...{_LAST}.querySelectorAll('.text > p')].map(p => p.textContent)")
    assert shown == [*formulas[:-1], r"\(1", "*no formula*, $5 or $6"]
    assert await browser.evaluate(f"getComputedStyle({_LAST}.querySelector('td')).textAlign") == "right"
    assert await browser.evaluate(f"{_LAST}.querySelector('td').textContent") == "$x|y$"


async def test_files_and_settings_are_sent(written, browser):
    written.deltas = [{"content": "a dot"}]
    for name, value in (("top-p", "0.5"), ("seed", "7"), ("stop-at", "\n.\nEnd")):
        await browser.fill(name, value)
    await _attach(browser, "attach", "a.png", bytes([1, 2, 3]))
    await _attach(browser, "attach", "a.md", b"```\ncode\n```")
    await _attach(browser, "attach", "a.bin", b"\xff\x00")
    await browser.wait_for("$('notice').textContent.includes('a.bin is no text')")
    await browser.wait_for("document.querySelectorAll('#pending span').length === 2")
    await browser.ask("what is this?")
    image, text = written.posts[0].json["messages"][0]["content"]
    assert image["image_url"]["url"] == "data:image/png;base64,AQID"
    assert text == {"type": "text", "text": "a.md:\n````\n```\ncode\n```\n````\n\nwhat is this?"}
    assert [written.posts[0].json[name] for name in ("top_p", "seed", "stop")] == [0.5, 7, [".", "End"]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 768, 1280])
async def test_the_page_is_accessible_and_fits_and_is_used_by_keyboard(written, axe, width, scheme):
    written.deltas = [{"reasoning": "think"}, {"content": _HOSTILE}]
    async with Browser(width=width, scheme=scheme) as browser:
        await browser.open_chat(written.url)
        await browser.press("hello " * 200, "Enter")
        await browser.wait_for("$('stop').hidden")
        for place in ("0", "document.body.scrollHeight"):
            await browser.evaluate(f"scrollTo(0, {place})")
            for name in ("state", "model", "new-talk", "prompt"):
                spot = f"document.querySelector('#{name}').getBoundingClientRect()"
                assert await browser.evaluate(f"{spot}.top >= 0 && {spot}.bottom <= innerHeight")
        await browser.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true; })")
        await browser.evaluate(f"{axe}; true")
        for view in ("#chat-tab", "#status-tab", "#list-talks"):
            await browser.evaluate(f"document.querySelector('{view}').focus()")
            await browser.press("Enter")
            findings = "axe.run().then(found => found.violations.map(({id, nodes}) => [id, nodes[0].html]))"
            assert await browser.evaluate(findings, is_promise=True) == []
            assert await browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
            assert await browser.evaluate(_SMALL) == []
            await browser.evaluate("$('chat-tab').click()")
        await browser.press("Escape")
        assert not await browser.evaluate("$('talks').open")
        assert await browser.evaluate("document.activeElement.id") == "list-talks"


_SMALL = (
    "[...document.querySelectorAll('button, .button, select, summary, textarea, input:not(.unseen, :disabled)')].filter"
    "(({ offsetWidth: wide, offsetHeight: high }) => wide && (wide < 24 || high < 24)).map(each => each.outerHTML)"
)
"""Visible targets that are smaller than WCAG 2.5.8 asks."""


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
