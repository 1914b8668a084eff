"""What shells, templates and word processors do to quotes, braces and dashes, and what to write instead."""

import json
import shlex

import pytest

from base.json_form import json_form
from envs.suggestion import changed_word

CONTENT = {"cudagraph_mode": "FULL", "sizes": [1, 2.5], "deep": {"on": True, "none": None}}
TEXT = json.dumps(CONTENT)


@pytest.mark.parametrize(("text", "what"), [
    (TEXT.replace('"', ""), "the quotes are lost"),  # -cc {"a": 1} in one word, as with eval or ssh
    (TEXT.replace('"', "").replace(" ", ""), "the quotes are lost"),
    (TEXT.replace('"', "\u201c"), "word processor"),
    (TEXT.replace('"', "\u2019"), "JSON has double quotes"),
    (TEXT.replace(" ", "\u00a0").replace('"', "\u201d"), "word processor"),
    (str(CONTENT), "JSON has double quotes"),  # Python's dict
    (f"'{TEXT}'", "quotes or backslashes are a part of it"),  # an env file, or a list in YAML
    (TEXT.replace('"', '\\"'), "quotes or backslashes are a part of it"),
    (json.dumps(TEXT), "quotes or backslashes are a part of it"),
    (TEXT.replace("{", "{{").replace("}", "}}"), "its braces are doubled"),  # a template
])  # fmt: skip
def test_changed_json_is_shown_as_it_was(text, what):
    form = json_form(text)
    assert what in form
    assert json.loads(shlex.split(form.partition(": write ")[2])[0]) == CONTENT


@pytest.mark.parametrize(("text", "form"), [
    ("{cudagraph_mode:FULL}", """: the quotes are lost: write '{"cudagraph_mode": "FULL"}'"""),
    ("[*]", """: the quotes are lost: write '["*"]'"""),
    ("mode:3", """: quotes and braces are lost: write '{"mode": 3}'"""),  # bash expands {"mode":3,"b":1}
    ("{mode:", ": put the whole JSON between single quotes"),
    ("{url:http://x}", ": put the whole JSON between single quotes"),
    ("{" * 5000, ": put the whole JSON between single quotes"),
    ("[" * 1999, ": put the whole JSON between single quotes"),
    *((text, "") for text in ("", "3", "x", "image=4", "FULL", "module.function", "a b", '"x"')),
])  # fmt: skip
def test_what_is_no_whole_json(text, form):
    assert json_form(text) == form


@pytest.mark.parametrize(("word", "instead"), [
    ("--host 127.0.0.1", "write --host 127.0.0.1 without quotes"),
    ('"--host"', "write --host"),
    ("'--host 127.0.0.1'", "write --host 127.0.0.1"),
    ("\u2014host", "write --host"),
    ("\u2013host", "write --host"),
    ("\u2212\u2212port=80", "write --port=80"),
    ("\u2013tp", "write -tp"),
    ("\u201c--host\u201d", "write --host"),
    ("3}", "put the whole JSON between single quotes"),
    ("${MODEL}", "was not filled in"),
    ("$(MODEL)", "was not filled in"),
    ("{{ .Values.model }}", "was not filled in"),
    *((word, None) for word in ("", "org/name", "/models/x y", "a-b", "127.0.0.1", "caf\u00e9", "-")),
])  # fmt: skip
def test_a_changed_word_is_shown_as_it_was(word, instead):
    assert changed_word(word) is None if instead is None else instead in (changed_word(word) or "")
