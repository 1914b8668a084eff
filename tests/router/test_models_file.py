"""Reads models files. Every kind of fault is reported with its line, key and value."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from router.model_entry import Fault, ModelEntry, ModelsFile, ModelsFileError
from router.models_file import document
from router.models_file.document import MAX_BYTES
from router.models_file.reader import Defaults, read_models_file
from router.models_file.schema import load_schema
from tests.router.conftest import NO_DEFAULTS
from tests.support.properties import given, st


def entry_of(read: Any, text: str, defaults: Defaults = NO_DEFAULTS) -> ModelEntry:
    content, faults = read(text, defaults)
    assert faults == []
    return next(iter(content.entries.values()))


def test_a_model_has_what_the_file_says(read):
    entry = entry_of(
        read,
        """
models:
  qwen:
    model: Qwen/Qwen3-0.6B
    args: {max-model-len: 8k, enforce-eager: true, enable-prefix-caching: false}
    engine: vllm
    env: {OMP_NUM_THREADS: 4, DEBUG: true}
    aliases: [small, {id: tiny, name: A name}]
    ttl: 10m
    start_timeout: 90
    preload: true
    concurrency: 8
    unlisted: true
""",
    )
    assert entry == ModelEntry(
        name="qwen",
        aliases=("small", "tiny"),
        arguments=("Qwen/Qwen3-0.6B", "--max-model-len=8k", "--enforce-eager", "--no-enable-prefix-caching"),
        engine="vllm",
        env={"OMP_NUM_THREADS": "4", "DEBUG": "true"},
        ttl_s=600,
        start_timeout_s=90,
        preload=True,
        concurrency=8,
        unlisted=True,
    )
    assert entry.line == 3
    assert entry.request_names == ("qwen", "small", "tiny")
    assert "OMP_NUM_THREADS" not in repr(entry)


@pytest.mark.parametrize(
    ("args", "arguments"),
    [
        ("--max-model-len 8k --chat-template 'a b'", ("--max-model-len", "8k", "--chat-template", "a b")),
        ("[--max-num-seqs, 4]", ("--max-num-seqs", "4")),
        ("{lora-modules: [a=/a, b=/b]}", ("--lora-modules", "a=/a", "b=/b")),
        ("{hf-overrides: {a: [1]}}", ('--hf-overrides={"a": [1]}',)),
        ("{no-enable-prefix-caching: false, --seed: 1, revision: null}", ("--enable-prefix-caching", "--seed=1")),
        ("", ()),
    ],
    ids=["text", "list", "a list", "JSON", "negated", "nothing"],
)
def test_flags_are_a_text_a_list_or_a_mapping(read, args, arguments):
    assert entry_of(read, f"models: {{m: {{args: {args if args[:1] in '[{' else repr(args)}}}}}").arguments == (
        "m",
        *arguments,
    )


@pytest.mark.parametrize(
    ("keys", "ttl_s"),
    [("", 30), ("ttl: 0", None), ("ttl: -1", 30), ("ttl: 1h", 3600), ("ttl: '0'", None), ("pinned: true", None)],
)
def test_the_time_without_requests_has_a_default(read, keys, ttl_s):
    assert entry_of(read, f"models: {{m: {{{keys}}}}}", Defaults(ttl_s=30)).ttl_s == ttl_s


@pytest.mark.parametrize(
    ("keys", "on_swap", "idle_sleep_s", "levels"),
    [
        ("", "sleep", 60, (1, 2)),
        ("on_swap: stop, idle_sleep: 0, sleep_level: 2", "stop", None, (2,)),
        ("idle_sleep: 5m, sleep_level: 1", "sleep", 300, (1,)),
        ("pinned: true", "sleep", None, (1, 2)),
    ],
    ids=["defaults", "none", "own", "pinned"],
)
def test_sleep_has_defaults(read, keys, on_swap, idle_sleep_s, levels):
    entry = entry_of(read, f"models: {{m: {{{keys}}}}}", Defaults(idle_sleep_s=60, on_swap="sleep"))
    assert (entry.on_swap, entry.idle_sleep_s, entry.sleep_levels) == (on_swap, idle_sleep_s, levels)


def test_the_files_defaults_are_stronger_than_those_of_the_command_line(read):
    entry = entry_of(read, "globalTTL: 60\nhealthCheckTimeout: 20\nmodels: {m: }", Defaults(30, 10))
    assert (entry.ttl_s, entry.start_timeout_s, entry.arguments) == (60, 20, ("m",))
    assert entry_of(read, "healthCheckTimeout: 0\nmodels: {m: }", Defaults(30, 10)).start_timeout_s is None


def test_names_are_what_is_written(read):
    content, faults = read("models:\n  no:\n  1.0: {aliases: ['2']}\n  ~x:\n")
    assert (list(content.entries), faults) == (["no", "1.0", "~x"], [])


def test_the_example_of_the_repository_is_right():
    content, faults = read_models_file(Path(__file__).parents[2] / "deploy" / "models.yaml", NO_DEFAULTS)
    assert (faults, content.notices) == ((), ())
    assert len(content.entries) >= 3


def test_anchors_and_merges_save_repetition(read):
    content, faults = read("x-base: &b {ttl: 60, unlisted: true}\nmodels:\n  m: {<<: *b, ttl: 5}\n  n: *b\n")
    assert faults == []
    assert [(e.ttl_s, e.unlisted) for e in content.entries.values()] == [(5, True), (60, True)]


FAULTS = {
    "models: {m: {modle: x}}": "1: models.m.modle: is not known here (did you mean 'model'?)",
    "models: {m: {zzz: x}}": "1: models.m.zzz: is not known here; known are model, args, ",
    "modles: {}\nmodels: {m: }": "1: modles: is not known here (did you mean 'models'?)",
    "models:\n  m:\n    ttl: soon": "3: models.m.ttl: must be a duration of at least 1 s such as 90s, 10m or 1h, or 0",
    "models: {m: {ttl: 0.5}}": "models.m.ttl: must be a duration",
    "models: {m: {ttl: .inf}}": "models.m.ttl: must be a duration of at least 1 s such as 90s, 10m or 1h, or 0",
    "models: {m: {concurrency: -1}}": "models.m.concurrency: must be 0 or more, got -1",
    "models: {m: {concurrency: two}}": "models.m.concurrency: must be a whole number, got 'two'",
    "models: {m: {concurrency: 1, concurrencyLimit: 2}}": "models.m: must have `concurrency` or `concurrencyLimit`",
    "models: {m: {pinned: maybe}}": "models.m.pinned: must be true or false, got 'maybe'",
    "models: {m: {pinned: true, ttl: 5}}": "models.m.ttl: must be left out, as `pinned: true` keeps the model",
    "models: {m: {engine: vlm}}": "models.m.engine: must be one of auto, embedded, vllm (did you mean 'vllm'?)",
    "models: {m: {model: [5]}}": "models.m.model: must be a text, got a list",
    "models: {m: {model: ''}}": "models.m.model: must not be empty",
    "models: {m: {model: x, cmd: y}}": "models.m: must have `cmd` or `proxy`, or `model`, `args`",
    "models: {m: {cmdStop: x}}": "models.m: must have `cmd` for `cmdStop` and `checkEndpoint`",
    "models: {m: {aliases: a}}": "models.m.aliases: must be a list, got 'a'",
    "models: {m: {aliases: [[3]]}}": "models.m.aliases[0]: must be a name, got a list",
    "models: {m: {env: [NAME]}}": "models.m.env: must be a mapping of variables",
    "models: {m: {env: {VLLM_API_KEY: a}}}": "models.m.env: must not have VLLM_API_KEY: keys are those of the server",
    "models: {m: {args: 5}}": "models.m.args: must be flags of `vllm-cli serve`",
    "models: {m: {args: --a 'b}}": 'models.m.args: must be arguments, got "--a \'b": No closing quotation',
    "models: {m: 5}": "models.m: must be a mapping, got 5",
    "models: {}": "models: must not be empty",
    "models:": "models: must be a mapping, got nothing",
    "{}": "must have the key models",
    "just a text": "must be a mapping, got 'just a text'",
    "models:\n  a:\n  b: {aliases: [a]}": "3: models.b.aliases[0]: 'a' is already a name of models.a",
    "models:\n  a: {aliases: [x]}\n  b: {aliases: [x]}": "3: models.b.aliases[0]: 'x' is already a name of models.a",
    "models:\n  a:\n  b:\n  a:\n": "4: models.a: is given twice, first in line 2: remove one of them",
    "models: {'a/../b': }": "models.a/../b: must be a name of at most 256 printable characters",
    'models: {"a\\u0001": }': "models.'a\\x01': must be a name of at most 256 printable characters",
    "models: {'': }": "must be a name of at most 256 printable characters",
    f"models: {{{'a' * 300}: }}": "must be a name of at most 256 printable characters",
    "apiKeys: [[5]]\nmodels: {m: }": "apiKeys[0]: must be a text, got a list",
    "apiKeys: ['  ']\nmodels: {m: }": "apiKeys[0]: must not be empty",
    "port: 80\nmodels: {m: }": "port: is not known here: see --port",
    "hooks: {on_startup: {preload: [mm]}}\nmodels: {m: }": "hooks.on_startup.preload[0]: 'mm' is not a model of this",
    "hooks: {on_startup: {load: [m]}}\nmodels: {m: }": "hooks.on_startup.load: is not known here (did you mean 'pre",
    "logLevel: loud\nmodels: {m: }": "logLevel: must be one of debug, info, warn, error, got 'loud'",
    "models: {m: {on_swap: nap}}": "m.on_swap: must be one of stop, sleep, got 'nap'",
    "models: {m: {sleep_level: 3}}": "m.sleep_level: must be one of 1, 2, got 3",
    "models: {m: {pinned: true, idle_sleep: 5m}}": "m.idle_sleep: must be left out, as `pinned: true` keeps the model",
    "models: {m: {cmd: 's ${PORT}', sleep: [{path: /a}]}}": "m.sleep: needs `wake` beside it: name the calls for both",
    "models: {m: {cmd: 's ${PORT}', wake: [{method: POST}], sleep: [{path: /a}]}}": "m.wake[0]: must have the key path",
    # what a shell, another program or a wrong indentation would need
    "models: {m: {cmd: 'A=1 prog ${PORT}'}}": "m.cmd: begins with 'A=1', which only a shell understands: use `env`",
    "models: {m: {cmd: 'cd /x && prog ${PORT}'}}": "m.cmd: 'cd' is a command of a shell: leave it out, or cmd: sh -c",
    "models: {m: {cmd: 'exec prog ${PORT}'}}": "m.cmd: 'exec' is a command of a shell",
    "models: {m: {cmd: '~/bin/prog ${PORT}'}}": "m.cmd: '~/bin/prog': only a shell replaces ~. Write the whole path",
    "models: {m: {cmd: 'prog ${PORT} > file'}}": "m.cmd: has '>', which only a shell understands: write cmd: sh -c",
    "models: {m: {cmd: 'vllm serve x 2>&1'}}": "m.cmd: has '2>&1', which only a shell understands",
    "models: {m: {cmd: 'prog ${PORT} | tee x'}}": "m.cmd: has '|', which only a shell understands",
    "models: {m: {cmd: 'prog; prog ${PORT}'}}": "m.cmd: has 'prog;', which only a shell understands",
    "models: {m: {command: prog}}": "m.command: is not known here: see `cmd`",
    "models: {a: {cmd: 's ${PORT}'}, m: {command: prog}}": "m.command: is not known here: see `cmd`",
    "models: {m: {url: 'http://h'}}": "m.url: is not known here: see `proxy`",
    "models:\n  a:\n    model: x\n    b:\n      model: y": "4: models.a.b: looks like a model in the wrong place: i",
    "models:\n  a:\nb:\n  model: y": "3: b: looks like a model in the wrong place: indent it below `models`",
    "models:\n  a:\n    model: x\n    ttl:\n    model: y": "5: models.a.model: is given twice, first in line 3: if",
    "models:\n  a:\n  model: y": "3: models.model: must be a mapping, got 'y': is it a key of the model above? In",
    # what is no YAML
    "": "models.yaml: is empty: name the models under `models:`",
    "models: {a: ]": "models.yaml:1: is not YAML: ",
    "models:\n  a: !!python/object:os.system {}": "models.yaml:2: the tag tag:yaml.org,2002:python/object:os.system is",
    "models: &a {b: *a}": "models.yaml:1: is nested more than 40 levels deep",
    "a: *nothing": "models.yaml:1: is not YAML: found undefined alias 'nothing'",
    "[" * 50 + "]" * 50: "models.yaml:1: is nested more than 40 levels deep",
    "[" * 1_000: "is nested too deeply",
    "models: {a: }\n---\nmodels: {b: }": "models.yaml:2: is not YAML: expected a single document in the stream, but",
    "? [a]\n: b": "models.yaml:1: a key must be a text",
    "models: {a: {<<: 5}}": "<< must be followed by mappings",
    f"models: {{a: {{ttl: {'9' * 5000}}}}}": "is no value: ",
    "a: \x07": "is not YAML: ",
}


@pytest.mark.parametrize(("text", "fault"), FAULTS.items(), ids=range(len(FAULTS)))
def test_what_does_not_fit_is_one_fault_with_line_and_key(read, text, fault):
    _, faults = read(text)
    assert len(faults) == 1, faults
    assert fault in faults[0]
    assert faults[0].startswith("models.yaml")


def test_aliases_are_counted_as_often_as_they_are_used(read, monkeypatch):
    monkeypatch.setattr(document, "_MAX_VALUES", 1000)
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    _, faults = read("\n".join(lines))
    assert "has more than 1000 values, those of its aliases included" in faults[0]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"models: {m: {model: \xff}}", "models.yaml:1: is not UTF-8: byte 0xff"),
        (b"\xfe\xff\x00m", "is not UTF-8"),
        (b" " * (MAX_BYTES + 1), f"has {MAX_BYTES + 1} bytes: at most {MAX_BYTES} are read"),
    ],
    ids=["latin", "utf-16", "large"],
)
def test_the_files_bytes_are_limited_and_utf_8(read, content, fault):
    assert fault in read(content)[1][0]


def test_a_byte_order_mark_changes_nothing(read):
    assert read(b"\xef\xbb\xbfmodels: {m: }")[1] == []


def test_what_is_no_file_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, fault in (("", "is a folder"), ("pipe", "is no regular file"), ("none", "cannot be read: No such file")):
        _, faults = read_models_file(tmp_path / name, Defaults())
        assert fault in str(faults[0])
    assert "cannot be read" in str(read_models_file(Path("a\0b"), Defaults())[1][0])


def test_all_faults_are_reported_at_once_in_the_order_of_the_file(read):
    content, faults = read(
        "models:\n  a: {ttl: x}\n  b: {modle: y}\n  c:\n  d: {aliases: [c]}\ngroups: {g: {members: [e]}}\nextra: 1\n"
    )
    assert [fault.split(": ")[0] for fault in faults] == [f"models.yaml:{line}" for line in (2, 3, 5, 6, 7)]
    assert list(content.entries) == ["c"]


def test_secrets_are_not_shown(read):
    text = (
        "apiKeys: [{a: s3cret}]\nmodels:\n  a: {env: {MY_TOKEN: [s3cret]}}\n  b: {env: [MY_TOKEN=s3cret, x]}\n"
        "  c: {args: --hf-token s3cret '}\n  d: {cmd: foo --api-key s3cret '}\n  e: {proxy: 5, cmd: x}\n"
    )
    _, faults = read(text)
    assert len(faults) >= 6
    assert "s3cret" not in "\n".join(faults)


@pytest.mark.thorough
def test_many_models_and_many_faults_are_limited(read):
    text = "models:\n" + "".join(f"  m{number}:\n" for number in range(1001))
    assert read(text)[1] == ["models.yaml:1: models: must have at most 1000 keys, got 1001"]
    lines = str(ModelsFileError([Fault(f"is wrong: {number}") for number in range(250)])).splitlines()
    assert (len(lines), lines[-1]) == (101, "and 150 more faults")


def test_the_error_lists_every_fault_on_a_line_of_its_own():
    faults = [Fault("is wrong", 3, "models.a"), Fault("is missing", check="model")]
    err = ModelsFileError(faults)
    assert str(err) == "models.yaml:3: models.a: is wrong\nmodels.yaml: is missing"
    assert err.has_usage_error
    assert not ModelsFileError([replace(faults[0], check="model")]).has_usage_error


def test_the_schema_is_valid_and_describes_every_key_to_editors():
    schema = load_schema()
    Draft202012Validator.check_schema(schema)

    def resolved(node: dict[str, Any]) -> dict[str, Any]:
        name = node.get("$ref", "").removeprefix("#/$defs/")
        return {**(schema["$defs"][name] if name else {}), **node}

    def properties(node: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        for key, value in node.items() if isinstance(node, dict) else ():
            if key == "properties":
                yield from value.items()
            yield from properties(value)
        for each in node if isinstance(node, list) else ():
            yield from properties(each)

    keys = [(name, resolved(key)) for name, key in properties({k: v for k, v in schema.items() if k != "$defs"})]
    keys += [
        (n, resolved(key)) for part in ("model", "group") for n, key in schema["$defs"][part]["properties"].items()
    ]
    assert len(keys) > 50
    assert [name for name, key in keys if not (key.get("title") and key.get("description"))] == []


_CHANGED = json.dumps(
    {
        "macros": {"a": "${b}", "b": 1},
        "models": {
            "m": {"model": "x", "args": {"max-model-len": "8k"}, "ttl": 5, "aliases": ["y"]},
            "n": {"cmd": "vllm serve x --port ${PORT} ${a}", "env": ["A=b"]},
            "o": {"cmd": "foo ${PORT}", "proxy": "http://127.0.0.1:${PORT}", "cmdStop": "kill ${PID}"},
        },
        "groups": {"g": {"members": ["m", "o"], "swap": True}},
        "hooks": {"on_startup": {"preload": ["m"]}},
    }
)
_TOKENS = ["", "{", "]", ":", ",", "5", "null", '"', "${", "*a", "&a ", "\n", "- ", "é", "[]", "true"]


@given(st.integers(0, len(_CHANGED) - 1), st.integers(0, 5), st.sampled_from(_TOKENS))
def test_any_change_of_a_file_is_a_fault_or_accepted(begin, num_removed, new):
    """Any content is accepted or gives faults, but never another error."""
    with NamedTemporaryFile(mode="w", suffix=".yaml", encoding="utf-8") as file:
        file.write(_CHANGED[:begin] + new + _CHANGED[begin + num_removed :])
        file.flush()
        content, faults = read_models_file(Path(file.name), NO_DEFAULTS)
    assert isinstance(content, ModelsFile)
    assert all(map(str, faults))


@pytest.mark.parametrize(
    "command",
    [
        "prog --port ${PORT} --text '>' --other \"a && b\" 'x;' --json '{\"a\": [1]}'",
        "sh -c 'cd /x && exec prog ${PORT} > file'",
        "env A=1 prog ${PORT}",
        "prog ${PORT} --reverse-prompt <|im_end|> --set a=~/b c=>d",
    ],
)
def test_a_command_that_needs_no_shell_is_taken_as_it_is(read, command):
    content, faults = read(f"models: {{m: {{cmd: {json.dumps(command)}}}}}")
    assert (faults, content.notices) == ([], ())


@pytest.mark.parametrize("argument", ["~/x", "$HOME/x", "`x`", '"$X"'])
def test_a_word_that_only_a_shell_replaces_is_named(read, argument):
    content, faults = read(f"models: {{m: {{cmd: {json.dumps(f'prog ${{PORT}} {argument}')}}}}}")
    assert faults == []
    assert "reaches the program as it is, because no shell replaces it" in str(content.notices[0])
