"""Templates cannot escape the sandbox."""

import re

import pytest

from base.errors import RequestError
from server.renderers.prompts import ChatOptions
from tests.hostile.templates import ESCAPES

TELLTALE = re.compile(r"<(class|function|module|method|built-in|code|frame|slot)|object at 0x|root:|co_consts =")


@pytest.mark.parametrize("template", ESCAPES.values(), ids=ESCAPES)
def test_no_template_escapes_the_sandbox(build_inline, model_path, tmp_path, template):
    """The template fails, or its text reveals nothing about the interpreter."""
    renderer = build_inline(model_path, chat_template=template.replace("PATH", str(tmp_path / "escaped")))
    try:
        text = str(renderer.render_chat([{"role": "user", "content": "Hello"}], ChatOptions()).text)
    except RequestError as err:
        assert err.status == 400
        text = err.message
    assert not TELLTALE.search(text), text
    assert not (tmp_path / "escaped").exists()
