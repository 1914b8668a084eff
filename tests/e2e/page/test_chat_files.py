"""Conversations as Markdown: what is exported is imported again, and a hostile file brings no markup."""

import json
from typing import Any

import pytest

from tests.e2e.page.written_chat import LAST, MARKUP, NUM_MESSAGES, attach
from tests.support.browser import needs_browser

pytestmark = [pytest.mark.slow, needs_browser]
_PIXEL = "data:image/png;base64,iVBORw0KGgo="
_TEXTS = (
    *(
        "plain",
        "",
        "\n",
        "two\n\nparagraphs\n",
        "# title",
        " lead",
        "System prompt: x",
        "Model: y",
        "![image](x)",
        MARKUP,
    ),
    *("## user", "x\n## assistant\n\n\\## user\n\\\\## user", "```\n## user\n```", "## user ", "\u2028## user\u2028"),
    *("a.py:\n```\nno end", "a.py:\n`````\ncode\n`````\n\ntext", "tab\tand \r return"),
)


def _conversations() -> list[dict[str, Any]]:
    """Conversations with each text in each place."""
    files = [{"name": "a: b.md", "text": "```\n## user\n```"}, {"name": "empty", "text": ""}]
    plain = {"title": "", "changed": 1_790_000_000_000, "model": "m/x", "temperature": "0", "stop": "a\nb"}
    return [
        plain | {
            "id": f"1-{at}", "title": text.strip() and f"T {at}", "system": text,
            "messages": [
                {"role": "user", "text": text, "images": [_PIXEL] * (at % 3), "files": files[: at % 4]},
                {"role": "assistant", "text": f"yes {text}", "model": "m/x"}, {"role": "user", "text": f"{text} end"},
            ],
        }
        for at, text in enumerate(_TEXTS)
    ]  # fmt: skip


async def test_markdown_is_imported_as_it_was_exported(browser):
    messages = "messages.map(({ role, text, images, files }) => [role, text, role === 'user' && [images, files]])"
    facts = "system, temperature, stop, model, changed"
    said = f"({{ messages, {facts} }}) => JSON.stringify([{facts}, {messages}])"
    for made in _conversations():
        code = f"""(async () => {{
            const talk = talks.parse({json.dumps(made)}), markdown = talkFiles.toMarkdown(talk), said = {said};
            const found = await talkFiles.read(new File([markdown], "chat.md"));
            return [said(talk), said(found[0]), markdown, talkFiles.toMarkdown(found[0])];
        }})()"""
        before, after, text, again = await browser.evaluate(code, is_promise=True)
        assert json.loads(after) == json.loads(before)
        assert again == text


async def test_a_markdown_file_is_imported_once_and_its_requests_are_the_same(written, browser):
    written.deltas = [{"content": "yes"}]
    await attach(browser, "attach", "a.md", b"code")
    await browser.wait_for("document.querySelectorAll('#pending span').length === 1")
    await browser.ask("one?")
    await browser.ask("two?")
    before = written.posts[-1].json["messages"]
    text = await browser.evaluate("talkFiles.toMarkdown(talks.read(sessionStorage.getItem('vllm-cli talk')))")
    await browser.evaluate("localStorage.clear(); sessionStorage.clear(); location.reload()")
    await browser.wait_for(f"document.readyState === 'complete' && !$('chat').hidden && {NUM_MESSAGES} === 0")
    for num, name, content in (
        (1, "chat.md", text),
        (0, "chat.md", text),
        (0, "windows.md", text.replace("\n", "\r\n")),
    ):
        await attach(browser, "import-talks", name, content.encode())
        await browser.wait_for(f"$('talks-notice').textContent === '{num} of 1 chats were new.'")
        await browser.evaluate("$('talks-notice').textContent = ''")
    await browser.click("#list-talks")
    await browser.click(".title")
    await browser.ask("two?")
    assert written.posts[-1].json["messages"][: len(before)] == before


_FAULTY = (
    *(b"", b"{", b"[]", b"5", b"null", b"# title", b"no title\n\n## user\n\nx", b"\xff\xfe", b"# a\n## User\n"),
    *(b"[" * 100_000, b'{"messages": [5, {"role": "system", "text": "x"}, {"role": "user", "text": {}}]}'),
)


async def test_a_file_without_chats_is_told_and_what_misfits_is_left_out(written, browser):
    for content in _FAULTY:
        await attach(browser, "import-talks", "x.md", content)
        await browser.wait_for("$('talks-notice').textContent.startsWith('x.md has no chats')")
        await browser.evaluate("$('talks-notice').textContent = ''")
    odd = {
        "used": {"x": 1},
        "note": [1],
        "model": 5,
        "reasoning": {},
        "isFault": "x",
        "onclick": MARKUP,
        "__proto__": 1,
    }
    part = '[{"role": "user", "text": "deep", "variants": {"at": 0, "tails": [null, '
    deep = part * 3000 + '[{"role": "user", "text": "x"}]' + "]}}]" * 3000
    variants = [
        {"at": at, "tails": tails} for at, tails in ((0, [[], None]), (5, [None]), ("x", 5), (0, [None, []]), (0, None))
    ]
    said = [{"role": "assistant", "text": MARKUP, "variants": one, **odd} for one in variants]
    kept = {"id": MARKUP, "title": MARKUP, "model": MARKUP, "messages": [*said, "deep"]}
    await attach(browser, "import-talks", "x.json", json.dumps(kept).replace('"deep"', deep[1:-1]).encode())
    await browser.wait_for("$('talks-notice').textContent === '1 of 1 chats were new.'")
    await browser.click("#list-talks")
    await browser.click(".title")
    assert await browser.evaluate(f"document.querySelectorAll('img').length + {NUM_MESSAGES}") == len(variants) + 1
    assert "1 of 2" in await browser.evaluate(f"{LAST}.innerText")
    assert await browser.evaluate("document.querySelectorAll('[aria-label^=next]').length") == 1
    assert await browser.evaluate("document.title") == "ready – small"
    written.deltas = [{"content": "yes"}]
    await browser.ask("more?")
    assert browser.errors == []
