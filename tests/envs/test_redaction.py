"""Secrets in arguments and addresses are hidden. Quotes, braces and dashes that programs change are named."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from base.json_form import json_form
from envs.redaction import hide_in_arguments, hide_in_command, is_secret_name, without_login
from envs.registry import variables
from envs.suggestion import changed_word
from startup.arguments.table import FLAGS
from tests.support.growth import growth
from tests.support.properties import given, st

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://name:sesame@host:8/x", "https://********@host:8/x"),
        ("https://name:ses@me@host/x", "https://********@host/x"),
        ("at http://sesame@a and http://b/x@y", "at http://********@a and http://b/x@y"),
        ("https://host/x?mail=a@b", "https://host/x?mail=a@b"),
        ("https://host, or write to a@b", "https://host, or write to a@b"),
        ("name@host", "name@host"),
    ],
)
def test_a_login_before_the_host_is_masked(text, shown):
    assert without_login(text) == shown


_FORMS = (
    ("serve m --api-key § §", "serve m --api-key * *"),
    ("--api_key=§ m", "--api_key=* m"),
    ("--api-k § --hf-tok § m", "--api-k * --hf-tok * m"),
    ("--hf-token -§ m", "--hf-token * m"),
    ("--hf-token --port 1", "--hf-token --port 1"),
    ("--kv-transfer-config.kv.secret_key § m", "--kv-transfer-config.kv.secret_key * m"),
    ("AWS_SECRET_ACCESS_KEY=§ OTEL_EXPORTER_OTLP_HEADERS=§", "AWS_SECRET_ACCESS_KEY=* OTEL_EXPORTER_OTLP_HEADERS=*"),
    ("http://§@h/v1?a=1&apiKey=§&b=2", "http://*@h/v1?a=1&apiKey=*&b=2"),
    ("http://§@h/?token=§", "http://*@h/?token=*"),
    ("Endpoint=a;AccountKey=§==;Suffix=b", "Endpoint=a;AccountKey=*;Suffix=b"),
    ("--api-key-file keys --ssl-keyfile k.pem m", "--api-key-file keys --ssl-keyfile k.pem m"),
    ("--allow-credentials --spec-tokens 8 --tokenizer t", "--allow-credentials --spec-tokens 8 --tokenizer t"),
)


@given(st.permutations(_FORMS), st.text("abXY01-_.+~", min_size=3))
def test_secrets_among_words_are_hidden_and_nothing_else_is(forms, end):
    """Also if one argument has the whole command, in which more than the secrets may be hidden."""
    secret = f"Zq{end}"
    given_arguments, shown = (
        [argument for form in forms for argument in f"{form[n]} --port 1".split()] for n in (0, 1)
    )
    arguments = [argument.replace("§", secret) for argument in given_arguments]
    assert hide_in_arguments(arguments, lambda _: "*") == shown
    assert secret not in hide_in_arguments([f"run {shlex.join(arguments)}"], lambda _: "*")[0]


@pytest.mark.parametrize(
    ("argument", "shown"),
    [
        ('{"kv": {"access_key": "SEC\\"RET", "role": "both"}}', '{"kv": {"access_key": "*", "role": "both"}}'),
        ('{"key": 7345, "seed": 1, "algorithm": "gumbel"}', '{"key": *, "seed": 1, "algorithm": "gumbel"}'),
        ('{"accessToken" : "SECRET"', '{"accessToken" : "*"'),
        ("Authorization: Bearer SECRET", "Authorization: Bearer *"),
        ("a bearer of news", "a bearer * news"),
        (
            "env A_TOKEN=SECRET vllm serve --api-key 'SECRET x' SECRET -tp 2",
            "env A_TOKEN=* vllm serve --api-key * * -tp 2",
        ),
        ('sh -c "vllm serve --hf-token SECRET m"', 'sh -c "vllm serve --hf-token * m"'),
        ("--cmd='vllm serve --api-key=SECRET \\\n m'", "--cmd='vllm serve --api-key=* \\\n m'"),
        ("it's --hf-token SECRET", "it's --hf-token *"),
    ],
)
def test_secrets_within_one_word_are_hidden(argument, shown):
    assert hide_in_arguments([argument], lambda _: "*") == [shown]
    assert hide_in_command(argument, lambda _: "*") == shown


def test_words_that_name_no_secret_are_shown_without_the_import_of_re():
    """The import of `re` would delay the client of a warm start."""
    arguments = [
        '--hf-overrides={"max_tokens": 8, "tokenizer": "t"}',
        "--chat-template={{ a }} b",
        "it's",
        "http://h/?a=b",
        "sh -c 'serve  m'",
        "http://h/x y",
    ]
    program = f"""
import sys
from envs.redaction import hide_in_arguments
assert hide_in_arguments({arguments!r}) == {arguments!r}
assert "re" not in sys.modules
"""
    subprocess.run([sys.executable, "-S", "-c", program], cwd=ROOT, check=True, timeout=60)


def test_masks_of_the_same_length_keep_the_length_of_every_word():
    command = "A_KEY=secret vllm 'x y' --api-key  secret"
    arguments = ["--cmd", command, '{"token": "secret"}', "http://a:b@c", "--api-k", "s", ""]
    assert [len(argument) for argument in hide_in_arguments(arguments, lambda text: "*" * len(text))] == [
        len(argument) for argument in arguments
    ]


def test_every_secret_flag_and_variable_is_recognised_and_no_other():
    assert {flag.name for flag in FLAGS if flag.is_secret} == {"--api-key", "--hf-token"}
    names = {variable.name for variable in variables() if variable.is_secret}
    assert names == {"VLLM_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "OPENAI_API_KEY"}


def test_secrets_of_other_programs_are_recognised():
    names = [
        "HUGGING_FACE_HUB_TOKEN",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "GOOGLE_API_KEY",
        "AZURE_STORAGE_CONNECTION_STRING",
        "AZURE_CLIENT_SECRET",
        "ANTHROPIC_AUTH_TOKEN",
        "PGPASSWORD",
        "x-api-key",
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
        "Authorization",
        "X-Amz-Signature",
        "--ssl-keyfile-password",
        "API_KEYS",
        "sig",
    ]
    assert [name for name in names if not is_secret_name(name)] == []


@pytest.mark.alone
@pytest.mark.parametrize("text", ['{"', '{"a":"', "'", '" ', "http://@?", "--api-key a ", "?a=&", "\\", '"\\"', "keys"])
def test_the_cost_is_linear_in_the_text(text):
    assert growth(lambda n: lambda: hide_in_command("{x " + text * n)) is None


CONTENT = {"cudagraph_mode": "FULL", "sizes": [1, 2.5], "deep": {"on": True, "none": None}}
TEXT = json.dumps(CONTENT)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (TEXT.replace('"', ""), "the quotes are lost"),  # -cc {"a": 1} in one argument, as with eval or ssh
        (TEXT.replace('"', "").replace(" ", ""), "the quotes are lost"),
        (TEXT.replace('"', "\u201c"), "word processor"),
        (TEXT.replace('"', "\u2019"), "JSON has double quotes"),
        (TEXT.replace(" ", "\u00a0").replace('"', "\u201d"), "word processor"),
        ("\ufeff" + TEXT.replace(" ", "\u200b"), "it has invisible characters"),
        (TEXT.replace('"', '\\"').replace("{", "\u201c{", 1) + "\u201d", "word processor and quotes or backslashes"),
        (TEXT.replace("}", ",}").replace("]", ", ]"), "a comma stands before a closing bracket"),
        (TEXT.replace('"', "\u201c").replace("]", ",]"), "word processor and a comma stands before"),
        (TEXT.replace("true", "True").replace("null", "None"), "JSON writes true, false and null"),
        (TEXT.replace("1, 2.5", "01, +2.5"), "a number is written in another way"),
        (str(CONTENT), "JSON has double quotes"),  # Python's dict
        (f"'{TEXT}'", "quotes or backslashes are a part of it"),  # an env file, or a list in YAML
        (TEXT.replace('"', '\\"'), "quotes or backslashes are a part of it"),
        (json.dumps(TEXT), "quotes or backslashes are a part of it"),
        (TEXT.replace("{", "{{").replace("}", "}}"), "its braces are doubled"),  # a template
    ],
)
def test_changed_json_is_shown_as_it_was(text, what):
    form = json_form(text)
    assert what in form
    assert json.loads(shlex.split(form.partition(": write ")[2])[0]) == CONTENT


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("{cudagraph_mode:FULL}", """: the quotes are lost: write '{"cudagraph_mode": "FULL"}'"""),
        ("[*]", """: the quotes are lost: write '["*"]'"""),
        ("mode:3", """: the quotes are lost and the braces are lost: write '{"mode": 3}'"""),  # of {"mode":3,"b":1}
        ("a=1", """: write a=1 as '{"a": 1}'"""),
        ("a=1,b.c=x", """: write a=1,b.c=x as '{"a": 1, "b.c": "x"}'"""),
        (r'{"a": "\d\n"}', r""": a backslash begins no escape sequence of JSON: write '{"a": "\\d\n"}'"""),
        ('{"a": "x\ty"}', r""": a line break or tab stands in a text: write '{"a": "x\ty"}'"""),
        ('{"a": 1} --port', ": '--port' follows the JSON, at character 10: remove it"),
        ('{"a": 1}}', ": '}' follows the JSON, at character 9: remove it"),
        ('{"a" 1}', ": a colon is missing before '1}', at character 6"),
        ('{"a": 1;}', ": a comma or a closing bracket is missing before ';}', at character 8"),
        ('{"a": "b}', ": the text that begins at character 7 has no closing quote"),
        ('{"a": 1,, "b": 2}', """: ', "b": 2}' is no name in double quotes, at character 9"""),
        ("{mode:", ": put the whole JSON between single quotes"),
        ("{url:http://x}", ": put the whole JSON between single quotes"),
        ("{" * 5000, ": put the whole JSON between single quotes"),
        ("[" * 1999, ": put the whole JSON between single quotes"),
        *((text, "") for text in ("", "3", "x", "FULL", "module.function", "a b", '"x"')),
    ],
)
def test_what_is_no_whole_json(text, form):
    assert json_form(text) == form


@pytest.mark.parametrize(
    ("argument", "instead"),
    [
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
        ("org/model\r", "has a carriage return (as in files of Windows) at character 10: write org/model"),
        ("org/model ", "has a blank at character 10: write org/model"),
        ("\u200borg/model", "has U+200B (zero width space) at character 1: write org/model"),
        ("--po\u00adrt", "has U+00AD (soft hyphen) at character 5: write --port"),
        ("--port\t80", "write --port 80 without quotes"),
        ("--port=80\n", "has a line break at character 10: write --port=80"),
        *((argument, None) for argument in ("", "org/name", "/models/x y", "a-b", "127.0.0.1", "caf\u00e9", "-")),
    ],
)
def test_a_changed_word_is_shown_as_it_was(argument, instead):
    assert changed_word(argument) is None if instead is None else instead in (changed_word(argument) or "")
