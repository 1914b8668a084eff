"""Chat templates are compiled, and a faulty one is reported with its line."""

import json
from collections.abc import Callable

import pytest

from startup.preflight.report import PreflightReport

Preflight = Callable[..., PreflightReport]

BROKEN = "{% for m in messages %}\n{{ m.content }}\n{% endif %}"
GENERATION = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% break %}{% endfor %}"


def messages(report: PreflightReport) -> list[str]:
    return [f.message for f in report.errors if f.check == "chat_template"]


def test_a_broken_template_of_the_model_is_reported_with_line_and_fix(folder, preflight: Preflight) -> None:
    (folder.path / "chat_template.jinja").write_text(BROKEN)
    (message,) = messages(preflight(folder.path))
    assert "chat_template.jinja is not a Jinja template" in message
    assert "at line 3" in message
    assert "give another one with --chat-template" in message


def test_a_given_template_replaces_the_broken_one(folder, preflight: Preflight) -> None:
    (folder.path / "chat_template.jinja").write_text(BROKEN)
    assert messages(preflight(folder.path, chat_template="{{ messages }}")) == []
    assert "--chat-template is not a Jinja template" in messages(preflight(folder.path, chat_template=BROKEN))[0]


def test_an_unknown_filter_is_an_error(folder, preflight: Preflight) -> None:
    assert "No filter named 'shout'" in messages(preflight(folder.path, chat_template="{{ messages | shout }}"))[0]


def test_blocks_that_transformers_adds_are_accepted(folder, preflight: Preflight) -> None:
    assert messages(preflight(folder.path, chat_template=GENERATION)) == []


@pytest.mark.parametrize(
    "value", [BROKEN, [{"name": "default", "template": "{{ x }}"}, {"name": "t", "template": BROKEN}]]
)
def test_templates_within_the_tokenizers_json_are_checked(folder, preflight: Preflight, value: object) -> None:
    (folder.path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
    assert "tokenizer_config.json" in messages(preflight(folder.path))[0]


def test_all_broken_templates_are_reported_at_once(folder, preflight: Preflight) -> None:
    (folder.path / "chat_template.jinja").write_text(BROKEN)
    (folder.path / "additional_chat_templates").mkdir()
    (folder.path / "additional_chat_templates" / "tools.jinja").write_text("{{ x")
    assert len(messages(preflight(folder.path))) == 2
