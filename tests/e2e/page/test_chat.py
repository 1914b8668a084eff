"""The chat of the page at `/` in a browser, with real servers and with answers that a test writes."""

import asyncio
import json
import subprocess
import tarfile
import threading

import pytest

from tests.e2e.page.written_chat import LAST, MARKUP, NUM_MESSAGES, attach, button, held_until, never_end
from tests.e2e.server_process import ServerProcess
from tests.support.browser import Browser, needs_browser
from tests.support.marks import require_tool

pytestmark = [pytest.mark.slow, needs_browser]
_AXE = "axe-core@4.14.1"
_HOSTILE = f"""# {MARKUP}

{MARKUP} [link](javascript:document.title='hacked') ![image](http://127.0.0.1:9/track.png)

<script>document.title='hacked'</script>

```html
{MARKUP}
```

| a | b |
|---|---|
| **bold** | `{MARKUP}` |

- [x] one
- two & three
"""
_OLD = """{"id": "1-2", "model": "old", "system": "Be brief.", "temperature": "0", "maxTokens": "5", "changed": 0,
"messages": [{"role": "user", "text": "old question"}, {"role": "assistant", "text": "old answer", "model": "old",
"note": "…"}]}"""
"""A conversation as version 0.4 of the page has kept it."""
_TITLES = "JSON.stringify([...document.querySelectorAll('.title')].map(title => title.textContent))"


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
            begun = await browser.evaluate(f"{LAST}.querySelector('.text').textContent")
            await browser.evaluate(f"{button('continue', -1)}.click()")
            await browser.wait_for(f"$('stop').hidden && {LAST}.innerText.includes('12 tokens')")
            text = await browser.evaluate(f"{LAST}.querySelector('.text').textContent")
            assert text.startswith(begun.strip())
            assert len(text) > len(begun)
            assert await browser.evaluate(f"{LAST}.querySelector('b').textContent") == "smol"
            await browser.open(f"{server.url}/")
            await browser.wait_for("$('talk').children.length === 2")
            assert await browser.evaluate(f"{LAST}.querySelector('.text').textContent") == text
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
    arguments = ("--api-key", "right-key-for-a-test", "--max-model-len", "256")
    with start_tiny_server(*arguments) as server:
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


async def test_markup_of_a_model_stays_text(written, browser):
    written.deltas = [{"reasoning": f"think {MARKUP}"}, *({"content": char} for char in _HOSTILE)]
    await browser.ask(MARKUP)
    assert await browser.evaluate("document.querySelectorAll('.message img, .message script').length") == 0
    assert await browser.evaluate("[...document.querySelectorAll('.message a')].map(a => a.href)") == [
        "http://127.0.0.1:9/track.png"
    ]
    assert await browser.evaluate("document.title") == "ready – small"
    assert await browser.evaluate(f"{LAST}.querySelector('pre').textContent") == MARKUP
    assert await browser.evaluate(f"{LAST}.querySelector('td strong').textContent") == "bold"
    assert await browser.evaluate(f"{LAST}.querySelectorAll('li').length") == 2
    assert not await browser.evaluate(f"{LAST}.querySelector('details').open")
    assert MARKUP in await browser.evaluate(f"{LAST}.querySelector('details').textContent")
    assert browser.errors == []


async def test_a_question_that_fails_is_not_sent_with_the_next_and_a_broken_answer_is_asked_again(written, browser):
    error = {"error": {"message": "too long"}}
    faults = (400, error), (502, b"bad"), (200, f"data: {json.dumps(error)}\n".encode()), (200, b": the model starts\n")
    for written.refusal in faults:
        assert "are sent without this question" in await browser.ask("fault")
    written.refusal, written.deltas, written.is_broken_off = None, [{"content": "half"}], True
    assert "broke off" in await browser.ask("hello")
    written.is_broken_off = False
    await browser.evaluate(f"{button('again', -1)}.click()")
    await browser.wait_for(f"{LAST}.innerText.includes('7 tokens')")
    assert [message["content"] for message in written.posts[-1].json["messages"]] == ["hello"]


async def test_an_edit_keeps_the_message_as_a_variant_and_an_answer_is_continued(written, browser):
    written.deltas, prompt = [{"content": "Paris"}], "$('prompt').value"
    assert await browser.evaluate("document.activeElement.id") == "prompt"
    for _ in range(2):
        await browser.ask("capitl?")
    await browser.press("a draft")
    await browser.evaluate(f"{button('edit', 0)}.click()")
    assert await browser.evaluate(prompt) == "capitl?"
    assert "another variant of message 1" in await browser.evaluate("$('editing').innerText")
    await browser.press("Escape")
    assert await browser.evaluate(f"{prompt} + {NUM_MESSAGES}") == "a draft4"
    await browser.evaluate(f"{button('edit', 0)}.click(); $('prompt').select()")
    await browser.press("capital?")
    assert await browser.evaluate(NUM_MESSAGES) == 4
    await browser.press("Enter")
    await browser.wait_for(f"$('stop').hidden && {NUM_MESSAGES} === 2")
    assert await browser.evaluate(prompt) == "a draft"
    written.deltas = [{"content": " is it."}]
    assert await browser.evaluate(f"{button('continue', -1)}.ariaLabel") == "continue message 2"
    await browser.evaluate(f"{button('continue', -1)}.click()")
    await browser.wait_for(f"{LAST}.querySelector('.text').textContent === 'Paris is it.'")
    assert [message["content"] for message in written.posts[-1].json["messages"]] == ["capital?", "Paris"]
    assert written.posts[-1].json["continue_final_message"]
    assert not written.posts[-1].json["add_generation_prompt"]
    assert browser.errors == []


_TEXTS = "[...document.querySelectorAll('.message .text')].map(text => text.textContent)"


async def test_variants_of_messages_are_chosen_and_kept_and_one_message_is_deleted(written, browser):
    async def press(name: str, at: int) -> list[str]:
        await browser.evaluate(f"{button(name, at)}.click()")
        await browser.wait_for("$('stop').hidden")
        return await browser.evaluate(_TEXTS)

    written.deltas = [{"content": "A"}]
    await browser.ask("one")
    written.deltas = [{"content": "B"}]
    await browser.ask("two")
    assert await press("again", 1) == ["one", "B"]
    assert await press("again", 1) == ["one", "B"]
    assert await press("next", 1) == ["one", "A", "two", "B"]  # after the last comes the first
    await browser.evaluate(f"{button('edit', 2)}.click()")
    assert await browser.ask("three")
    assert await browser.evaluate(_TEXTS) == ["one", "A", "three", "B"]
    await browser.open(written.url)
    await browser.wait_for(f"{NUM_MESSAGES} === 4")
    assert "2 of 2" in await browser.evaluate("$('talk').children[2].innerText")
    assert await press("previous", 2) == ["one", "A", "two", "B"]
    await browser.evaluate("confirm = (text) => { asked = text; return true; }")
    assert await press("delete", 2) == ["one", "A", "B"]
    assert await browser.evaluate("asked") == "Delete message 3?"
    assert await press("next", 2) == ["one", "A", "three", "B"]  # the next message has taken over the variants
    assert await press("previous", 1) == ["one", "B"]
    assert await press("delete", 1) == ["one", "B"]
    assert "2 of 2" in await browser.evaluate(f"{LAST}.innerText")
    assert await press("delete", 1) == ["one", "A", "three", "B"]  # the last variant takes its place
    assert await browser.evaluate("document.querySelectorAll('[aria-label*=variant]').length") == 2
    for _ in range(4):
        await press("delete", 0)
    stored = "Object.keys(localStorage).filter(name => name.startsWith('vllm-cli chat ')).length"
    assert await browser.evaluate(f"{NUM_MESSAGES} + {stored}") in (0, 2)
    assert browser.errors == []


async def test_a_message_that_is_sent_during_an_answer_waits_for_its_end(written, browser):
    release = threading.Event()
    written.refusal = held_until(release)
    await browser.send("one")
    await browser.press("two", "Enter")
    notice = "$('notice').textContent"
    assert "sent once the answer is complete" in await browser.evaluate(notice)
    await browser.press("Escape")
    assert await browser.evaluate(notice) == ""
    assert not await browser.evaluate("$('stop').hidden")
    await browser.press("Enter")
    release.set()
    await browser.wait_for(f"$('stop').hidden && {NUM_MESSAGES} === 4")
    assert [message["content"] for message in written.posts[-1].json["messages"]] == ["one", "half done", "two"]
    written.refusal = never_end
    await browser.send("three")
    await browser.press("four", "Enter")
    await browser.click("#stop")
    await browser.wait_for("$('stop').hidden")
    assert "Not sent" in await browser.evaluate(notice)
    assert await browser.evaluate("$('prompt').value") == "four"


async def test_an_answer_has_a_limit_that_the_user_sees_and_changes(written, browser):
    written.deltas, limits = [{"content": "yes"}], [None, 256, 8192, 7]
    for limit, length in zip(limits, (None, 1024, 131072, 131072), strict=True):
        written.context_length = length
        await browser.open_chat(written.url)
        if limit == 7:
            await browser.fill("max-tokens", "7")
        await browser.ask("one")
        assert written.posts[-1].json.get("max_tokens") == limit
        shown = "256" if limit == 256 else "8192" if limit else "the server's"
        assert await browser.evaluate("$('max-tokens').placeholder") == shown


@pytest.mark.parametrize("leaves", ["$('new-talk').click()", "location.reload()"])
async def test_an_answer_that_a_user_leaves_keeps_its_text_and_the_draft_stays(written, browser, leaves):
    written.refusal = never_end
    await browser.fill("seed", "7")
    await browser.send("one")
    await browser.wait_for(f"{LAST}?.querySelector('.text').innerText.trim() === 'half'")
    await browser.press("a draft")
    await browser.evaluate(leaves)
    await browser.wait_for("!$('chat').hidden && $('stop').hidden")
    assert await browser.evaluate("$('prompt').value") == "a draft"
    assert await browser.evaluate("$('seed').value") == "7"
    await browser.click("#list-talks")
    await browser.click(".title")
    assert await browser.evaluate(f"{LAST}.querySelector('.text').innerText.trim()") == "half"
    assert await browser.evaluate(f"{LAST}.querySelector('.under small').textContent") == "stopped"
    assert not await browser.evaluate(f"{LAST}.querySelector('.failed') !== null")


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
    await attach(browser, "import-talks", "all.json", json.dumps([kept]).encode())
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
    written.refusal = never_end
    await browser.send("two")
    await browser.wait_for(f"{LAST}?.querySelector('.text').innerText.trim() === 'half'")
    written.refusal = None
    await other.ask("three")
    await browser.click("#stop")
    await browser.wait_for("$('stop').hidden")
    assert "Another tab has gone on with this chat" in await browser.evaluate("$('notice').textContent")
    stored = "JSON.stringify(Object.entries(localStorage).filter(([name]) => name.startsWith('vllm-cli chat ')))"
    text = await browser.evaluate(stored)
    assert all(text.count(f'\\"text\\":\\"{said}\\"') >= 1 for said in ("two", "half", "three", "yes")), text
    await browser.evaluate("location.reload()")
    await browser.wait_for(f"{NUM_MESSAGES} === 4")


async def test_two_tabs_show_the_same_conversation(written, browser):
    release, other = threading.Event(), await browser.open_tab()
    await other.open_chat(written.url)
    written.refusal = held_until(release)
    await browser.send("one")
    await browser.wait_for(f"{LAST}?.querySelector('.text').innerText.trim() === 'half'")
    await other.click("#list-talks")
    await other.click(".title")
    text, note = f"{LAST}.querySelector('.text').innerText.trim()", f"{LAST}.querySelector('.under small').textContent"
    await other.wait_for(f"{text} === 'half' && {note} === '…'")
    release.set()
    await other.wait_for(f"{text} === 'half done' && {note}.startsWith('7 tokens')")
    written.refusal = never_end
    await browser.send("two")
    await other.wait_for(f"{NUM_MESSAGES} === 4 && {text} === 'half'")
    await browser.evaluate("location.reload()")
    for tab in (browser, other):
        await tab.wait_for(f"{NUM_MESSAGES} === 4 && {text} === 'half' && {note} === 'stopped'")
    await browser.evaluate("confirm = () => true")
    await browser.click("#list-talks")
    await browser.click("#talk-list [aria-label^=delete]")
    await other.wait_for("$('notice').textContent === 'This chat was deleted in another tab.'")
    assert await other.evaluate(NUM_MESSAGES) == 0


async def test_kept_conversations_are_found_renamed_deleted_exported_and_imported(written, browser):
    await browser.evaluate(f"localStorage.setItem('vllm-cli chat 1-2', {json.dumps(_OLD)})")
    written.deltas = [{"content": "yes"}]
    for _ in range(2):
        await browser.ask("really?")
    await browser.evaluate("asked = []; answer = false; confirm = (text) => { asked.push(text); return answer; }")
    await browser.evaluate(
        "prompt = () => 'Renamed'; URL.createObjectURL = (blob) => { exported = blob.text(); return '#'; }"
    )
    await browser.click("#list-talks")
    assert await browser.evaluate(_TITLES) == '["really?","old question"]'
    for label in ("rename “old question”", "export “Renamed”"):
        await browser.click(f"[aria-label='{label}']")
    text = await browser.evaluate("exported", is_promise=True)
    assert text.startswith("# Renamed\n\nModel: old\n\nDate: 1970-01-01 ")
    assert text.endswith("System prompt: Be brief.\n\n## user\n\nold question\n\n## assistant\n\nold answer\n")
    await browser.press("ANSWER")  # into the field of the search
    assert await browser.evaluate(_TITLES) == '["Renamed"]'
    await browser.click("#export-talks")
    whole = await browser.evaluate("exported", is_promise=True)
    await browser.click("#talk-list [aria-label^=delete]")
    assert await browser.evaluate(f"asked.length + {_TITLES} + {NUM_MESSAGES}") == '1["Renamed"]4'
    await browser.evaluate("answer = true")
    await browser.click("#talk-list [aria-label^=delete]")
    assert await browser.evaluate(_TITLES) == "[]"
    await attach(browser, "import-talks", "all.json", whole.encode())
    await browser.wait_for("$('talks-notice').textContent === '1 of 2 chats were new.'")
    await browser.click(".title")
    shown = await browser.evaluate(f"{LAST}.innerText")
    assert shown.split() == ["old", "old", "answer", "stopped", "copyagaincontinuedelete"]
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


async def test_files_and_settings_are_sent(written, browser):
    written.deltas = [{"content": "a dot"}]
    for name, value in (("top-p", "0.5"), ("seed", "7"), ("stop-at", "\n.\nEnd")):
        await browser.fill(name, value)
    await attach(browser, "attach", "a.png", bytes([1, 2, 3]))
    await attach(browser, "attach", "a.md", b"```\ncode\n```")
    await attach(browser, "attach", "a.bin", b"\xff\x00")
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
