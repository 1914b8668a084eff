"""Checks that chat templates compile with the settings of transformers."""

from collections.abc import Iterator
from pathlib import Path

from startup.model.json_file import read_json_object
from startup.preflight.report import Finding, error


def check_chat_templates(tokenizer_folder: Path | None, given: str | None) -> Iterator[Finding]:
    """Checks the template of `--chat-template`, or else those of the tokenizer."""
    templates = {"--chat-template": given} if given is not None else _own_templates(tokenizer_folder)
    for source, template in templates.items():
        if problem := _problem(template):
            advice = "correct it" if given is not None else "give another one with --chat-template"
            yield error("chat_template", f"{source} is not a Jinja template: {problem}; {advice}")


def _own_templates(folder: Path | None) -> dict[str, str]:
    if folder is None:
        return {}
    paths = [folder / "chat_template.jinja", *sorted((folder / "additional_chat_templates").glob("*.jinja"))]
    templates = {str(path): text for path in paths if (text := _read(path)) is not None}
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (folder / name).exists():
            templates |= _in_json(folder / name)
    return templates


def _in_json(path: Path) -> dict[str, str]:
    """The file's template, or its list of named templates."""
    value = read_json_object(path).content.get("chat_template")
    if isinstance(value, str):
        return {str(path): value}
    named = [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []
    return {f"{path} ({entry.get('name')})": str(entry.get("template", "")) for entry in named}


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _problem(template: str) -> str | None:
    from jinja2 import TemplateSyntaxError, nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationBlock(Extension):
        """`{% generation %}`, an extension of transformers that marks the assistant's part."""

        tags = {"generation"}

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    extensions = [GenerationBlock, "jinja2.ext.loopcontrols"]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    try:
        environment.compile(template)
    except TemplateSyntaxError as err:
        return f"{err.message} at line {err.lineno}"
    return None
