"""Files of llama-swap: macros, commands, groups, and faults for unsupported keys."""

import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from router.model_entry import BodyChanges, ForeignCommand, ModelsFile, ServerCall
from router.models_file.commands import recognise
from router.models_file.macros import MacroError, expand
from router.models_file.schema import load_schema
from startup.settings.serve_arguments import vllm_file
from tests.support.marks import thorough_but_for

OURS = Path(sys.executable).parent


EXAMPLE = """
healthCheckTimeout: 500
logLevel: warn
startPort: 10001
globalTTL: 300
macros:
  "latest-llama": >
    /opt/llama/llama-server
    --port ${PORT}
  default_ctx: 4096
  args: "--ctx-size ${default_ctx}"
apiKeys: ["sk-one", "${env.KEY_OF_TEST}"]
models:
  gpt:
    macros: {default_ctx: 16384}
    cmd: |
      # a comment, with ${nothing} in it
      ${latest-llama} \\
      --model 'a b.gguf'
      ${args} --alias ${MODEL_ID}
    name: "gpt-oss 120B"
    description: "A thinking model"
    env:
      - "CUDA_VISIBLE_DEVICES=0,1"
    checkEndpoint: /ready
    ttl: 60
    concurrencyLimit: 4
    aliases: ["gpt-4o-mini"]
    metadata: {port: "${PORT}", list: [1, 2]}
  docker:
    proxy: "http://127.0.0.1:${PORT}"
    cmd: docker run --name ${MODEL_ID} -p ${PORT}:8080 image
    cmdStop: docker stop ${MODEL_ID} --pid ${PID}
    unlisted: true
    ttl: 0
  fixed:
    proxy: http://127.0.0.1:8999/v1
    cmd: server --listen 8999
    checkEndpoint: none
groups:
  big: {swap: true, exclusive: false, members: [gpt, docker]}
hooks:
  on_startup:
    preload: [gpt]
"""


STARTPORT = "models.yaml:4: startPort: has no effect: ${PORT} is a port that is free when the model starts"


def test_a_file_of_llama_swap_is_read_as_it_is(read, monkeypatch):
    monkeypatch.setenv("KEY_OF_TEST", "sk-two")
    content, faults = read(EXAMPLE)
    assert (faults, list(map(str, content.notices))) == ([], [STARTPORT])
    gpt, docker, fixed = content.entries.values()
    arguments = "/opt/llama/llama-server --port ${PORT} --model|a b.gguf|--ctx-size 16384 --alias gpt"
    assert gpt.foreign == ForeignCommand(
        arguments=tuple(
            argument for part in arguments.split("|") for argument in ([part] if part == "a b.gguf" else part.split())
        ),
        address="http://127.0.0.1:${PORT}",
        port=None,
        check_endpoint="/ready",
    )
    assert (gpt.ttl_s, gpt.concurrency, gpt.start_timeout_s, gpt.engine, gpt.preload) == (60, 4, 500, "other", True)
    assert (gpt.env, gpt.aliases, gpt.excludes) == (
        {"CUDA_VISIBLE_DEVICES": "0,1"},
        ("gpt-4o-mini",),
        frozenset({"docker"}),
    )
    assert docker.foreign.stop_words == ("docker", "stop", "docker", "--pid", "${PID}")
    assert (docker.ttl_s, docker.unlisted, docker.preload) == (None, True, False)
    assert (fixed.foreign.port, fixed.foreign.check_endpoint, fixed.ttl_s) == (8999, "none", 300)
    assert fixed.excludes == {"gpt", "docker"}
    assert (content.api_keys, content.log_level) == (("sk-one", "sk-two"), "WARNING")
    assert "sk-one" not in repr(content)


@pytest.mark.parametrize(
    ("command", "engine", "arguments", "env"),
    [
        ("vllm serve a/b --port ${PORT} --max-model-len 8k", "vllm", "a/b --max-model-len 8k", {}),
        ("vllm serve a/b --port=5 --host 0.0.0.0 -tp 2", "vllm", "a/b -tp 2", {}),
        ("vllm-cli serve a/b --uds x.sock", "auto", "a/b", {}),
        (f"{OURS}/vllm-cli serve a/b", "auto", "a/b", {}),
        (f"{OURS}/python -m vllm_cli serve a/b", "auto", "a/b", {}),
        ("env A=b C='d e' vllm serve a/b", "vllm", "a/b", {"A": "b", "C": "d e"}),
        ("A=b exec vllm serve a/b", None, "", {}),
        ("exec vllm serve a/b", "vllm", "a/b", {}),
        ("/nowhere/bin/vllm serve a/b", "vllm", "a/b", {}),
        ("python -m vllm.entrypoints.openai.api_server --model a/b --port 5", "vllm", "a/b", {}),
        ("python -m vllm.entrypoints.openai.api_server --dtype auto --model=a/b", "vllm", "a/b --dtype auto", {}),
        ("python3.12 -m vllm.entrypoints.cli.main serve a/b", "vllm", "a/b", {}),
        ("vllm", None, "", {}),
        ("python -m http.server", None, "", {}),
        ("llama-server --port ${PORT}", None, "", {}),
        ("docker run vllm/vllm-openai serve a/b", None, "", {}),
        ("env -i vllm serve a/b", None, "", {}),
        ("env", None, "", {}),
    ],
)
def test_a_command_of_our_engines_is_recognised(command, engine, arguments, env):
    found = recognise(shlex.split(command))
    if engine is None:
        assert found is None
    else:
        assert (found.engine, found.arguments, found.env) == (engine, arguments.split(), env)


def test_a_vllm_of_another_environment_is_another_server(tmp_path, monkeypatch):
    other = tmp_path / "vllm"
    other.touch(mode=0o755)
    assert recognise([str(other), "serve", "a/b"]) is None
    assert recognise(["vllm", "serve", "a/b"]) is not None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (recognise(["vllm", "serve", "a/b"]) is None) is (vllm_file() is None)


def test_a_recognised_command_gives_words_variables_and_engine(read):
    content, faults = read(
        "models:\n  q:\n    cmd: env A=1 B=2 vllm serve x --port ${PORT} --dtype auto\n    env: {B: 3}\n"
        "    proxy: http://x:1\n"
    )
    assert faults == []
    entry = content.entries["q"]
    assert (entry.arguments, entry.engine, entry.foreign) == (("x", "--dtype", "auto"), "vllm", None)
    assert entry.env == {"A": "1", "B": "3"}
    assert [str(notice) for notice in content.notices] == [
        "models.yaml:5: models.q.proxy: has no effect: the model is started by this program, which knows how to "
        "reach and stop it"
    ]


MACROS = {
    "macros: {a: '${b}', b: '${a}'}\nmodels: {m: {cmd: '${a}'}}": "the macros contain themselves: a -> b -> a",
    "macros: {abcd: x}\nmodels: {m: {cmd: '${abce}'}}": "there is no macro ${abce} (did you mean 'abcd'?)",
    "models: {m: {cmd: 'x ${PID}'}}": "there is no macro ${PID}: only cmdStop may contain it",
    "models: {m: {model: 'x${PORT}'}}": "there is no macro ${PORT}: only cmd, proxy and env may contain it",
    "models: {m: {cmd: 'x ${env.NO_VAR}'}}": "${env.NO_VAR}: the environment variable NO_VAR is not set",
    "macros: {PORT: 5}\nmodels: {m: }": "macros.PORT: must be a name of up to 64 letters",
    "macros: {'a b': 5}\nmodels: {m: }": "macros.a b: must be a name of up to 64 letters",
    "macros: {a: [5]}\nmodels: {m: }": "macros.a: must be a text, a number, true or false",
    "apiKeys: ['${env.NOT_SET_HERE}']\nmodels: {m: }": "apiKeys[0]: ${env.NOT_SET_HERE}: the environment variable",
}


def _places(schema: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of all keys in a file of models. `m` is a name, and an item of a list has the key `[]`."""
    if "$ref" in schema:
        schema = load_schema()["$defs"][schema["$ref"].rpartition("/")[2]]
    if path:
        yield path
    if len(path) < 6:
        parts = [*schema.get("properties", {}).items(), ("[]", schema.get("items", {}))]
        parts += [("m", each)] if isinstance(each := schema.get("additionalProperties"), dict) else []
        for key, part in parts if "macros" not in path else ():
            yield from _places(part, (*path, key)) if part else ()
        for part in [*schema.get("anyOf", ()), *schema.get("oneOf", ())]:
            yield from _places(part, path)


def _at(path: tuple[str, ...], value: Any) -> Any:
    for key in reversed(path):
        value = [value] if key == "[]" else {key: value}
    return value


MACRO_VALUES = ("x", "''", "5", "1.5", ".inf", ".nan", "true", "null", "[5]", "{a: 1}", "2001-01-01", "!!binary aGk=")


@pytest.mark.parametrize("value", thorough_but_for((*MACRO_VALUES, "9" * 400), "[5]"))
def test_a_macro_of_any_type_in_any_key_works_or_is_a_fault(read, value):
    model = {"cmd": "x ${PORT}"}
    leaves = [each for text in ("${a}", "x ${a}") for each in (text, [text], {"k": text})]
    places = [path for path in dict.fromkeys(_places(load_schema())) if "macros" not in path]
    inside = [path[2:] for path in places if path[:2] == ("models", "m") and path[2:]]
    numbered = enumerate((path, leaf) for path in inside for leaf in leaves)
    documents = [{"models": {f"m{number}": model | _at(path, leaf) for number, (path, leaf) in numbered}}]
    documents += [{"models": {"m": model}} | _at(path, leaves[0]) for path in places if path[0] != "models"]
    for document in documents:
        keys = "\n".join(f"{key}: {json.dumps(content)}" for key, content in document.items())
        content, faults = read(f"macros: {{a: {value}}}\n{keys}\n")
        for entry in content.entries.values():
            assert all(
                isinstance(argument, str) for argument in (*entry.arguments, *entry.aliases, *entry.env.values())
            )
            json.dumps([entry.card, entry.changes and asdict(entry.changes)], allow_nan=False)
        if value in ("null", "[5]", "{a: 1}"):
            told = "has no value" if value == "null" else "is a list" if value == "[5]" else "is a mapping"
            assert any(f"the macro ${{a}} {told}: give it a text" in fault for fault in faults)
    assert len(inside) > 40


def test_macros_that_double_each_other_are_cut_off():
    texts = {f"a{n}": f"${{a{n + 1}}}${{a{n + 1}}}" for n in range(64)} | {"a64": "x" * 100}
    with pytest.raises(MacroError, match="has more than 65536 characters with its macros"):
        expand("${a0}", texts)


COMMANDS = {
    '{cmd: "x \'y"}': 'models.m.cmd: must be a command, got "x \'y": No closing quotation',
    "{cmd: '# only a comment'}": "models.m.cmd: must be a command, got only comments and blanks",
    "{cmd: server}": "models.m.cmd: must contain ${PORT}, or `proxy` must name the port on which the command listens",
    "{cmd: server, proxy: 'http://h:${PORT}'}": "models.m.cmd: must contain ${PORT}",
    "{cmd: server, proxy: ftp}": "models.m.proxy: must be an address such as http://127.0.0.1:${PORT}, got 'ftp'",
    "{cmd: server, proxy: 'http://h:70000'}": "models.m.proxy: must be an address such as",
    "{cmd: server, proxy: 'http://h:0'}": "models.m.proxy: must be an address such as",
    "{cmd: 'x ${PORT}', checkEndpoint: a b}": "models.m.checkEndpoint: must be a path such as /health, or none",
    "{cmd: 'x ${PORT}', cmdStop: \"kill '\"}": "models.m.cmdStop: must be a command",
    "{cmd: vllm serve}": "models.m.cmd: must name the model, as in: vllm serve Qwen/Qwen3-0.6B",
    "{proxy: 'http://h:${PORT}'}": "models.m.cmd: must contain ${PORT}, or `proxy` must name the port",
    "{cmd: [a]}": "models.m.cmd: must be a text, got a list",
}


def _servers(*names: str, **keys: str) -> str:
    lines = [f"  {name}: {{cmd: 'x ${{PORT}}'{keys.get(name, '')}}}" for name in names]
    return "\n".join(["models:", *lines, ""])


def _excludes(content: ModelsFile) -> str:
    return " ".join("".join(sorted(entry.excludes)) or "-" for entry in content.entries.values())


MATRIX = "matrix: {vars: {v: a}, evict_costs: {a: 5}, sets: {%s}}"
ROUTING = "routing: {router: {use: %s, settings: {groups: %s, matrix: {sets: {x: a & b}}}}}"
EXCLUDES = {
    "groups: {}": "bc ac ab -",
    "groups: {g: {members: [a, b], swap: false, exclusive: false}}": "- - ab -",
    "groups: {g: {members: [a, b, c], exclusive: false}}": "bc ac ab -",
    "groups: {g: {members: [a, b]}}": "bco aco ab -",
    "groups: {g: {members: [a], persistent: true}, h: {members: [b, c, o]}}": "bco co bo bc",
    MATRIX % "x: a & b, y: b & c": "co o ao abc",
    MATRIX % "x: (v | b) & (c | o)": "b a o c",
    MATRIX % "x: a | b, y: (+x) & c & o": "b a - -",
    MATRIX % "x: a": "bco aco abo abc",
    ROUTING % ("group", "{g: {members: [a, b], swap: true}}"): "bco aco ab -",
    ROUTING % ("matrix", "{g: {members: [a, b]}}"): "co co abo abc",
}


@pytest.mark.parametrize(("text", "excludes"), EXCLUDES.items())
def test_who_excludes_whom_as_in_llama_swap(read, text, excludes):
    """The settings of `routing` are those of the top level. Models of a set of the matrix run together."""
    content, faults = read(_servers("a", "b", "c") + f"  o: {{model: x}}\n{text}\n")
    assert faults == []
    assert _excludes(content) == excludes
    assert len(content.notices) == (text == "groups: {}" or "evict_costs" in text)


def test_a_pinned_model_is_stopped_by_no_group(read):
    text = _servers("a") + "  o: {model: x, pinned: true}\ngroups: {g: {members: [a]}}\n"
    content, faults = read(text)
    assert (faults, _excludes(content)) == ([], "- -")


GROUPS = {
    "groups: {g: {members: [a]}, h: {members: [a]}}": "groups.h.members[0]: 'a' is already in groups.g",
    "groups: [a]": "groups: must be a mapping, got a list",
    "groups: {g: {members: [a, b]}}\nx-p: 1": "models.b.pinned: must be false: one model of groups.g runs at a time",
    "groups: {g: {members: [a]}}\nmatrix: {sets: {x: a}}": "matrix: must not be given beside groups",
    "routing: {router: {use: group, settings: {groups: {g: {members: [a]}}}}}\ngroups: {h: {members: [a]}}": (
        "routing.router.settings.groups: must not be given beside groups at the top level"
    ),
    "matrix: {sets: {}}": "matrix.sets: must not be empty",
    "matrix: {sets: {x: a & (b | c)}}": "matrix.sets.x: 'c' is neither a model nor a name of `vars`",
    "matrix: {sets: {x: a b}}": "matrix.sets.x: must be an expression such as (a | b) & c, got 'a b'",
    "matrix: {sets: {x: (a}}": "matrix.sets.x: must be an expression such as (a | b) & c, got '(a'",
    "matrix: {sets: {x: a & (b | +x)}}": "must not contain itself: x -> x",
    f"matrix: {{sets: {{x: {'(' * 9999}}}}}": "matrix.sets.x: must be an expression such as",
}


FAULTS = {
    **MACROS,
    **{f"models: {{m: {keys}}}": fault for keys, fault in COMMANDS.items()},
    **{
        _servers("a") + f"  b: {{model: x, pinned: {str('x-p' in text).lower()}}}\n{text}\n": fault
        for text, fault in GROUPS.items()
    },
}


@pytest.mark.parametrize(("text", "fault"), FAULTS.items(), ids=range(len(FAULTS)))
def test_a_wrong_macro_command_or_group_is_a_fault(read, text, fault):
    _, faults = read(text)
    assert len(faults) == 1, faults
    assert fault in faults[0]


def test_two_servers_with_one_port_never_run_together(read):
    text = "models:\n  a: {cmd: x, proxy: 'http://127.0.0.1:8999'}\n  b: {cmd: y, proxy: 'http://localhost:8999/v1'}\n"
    together = "groups: {g: {members: [a, b], swap: false}}\n"
    content, faults = read(text + together)
    assert (faults, _excludes(content)) == ([], "b a")
    assert [str(notice) for notice in content.notices] == [
        "models.yaml:2: models.a.proxy: has port 8999, as does b: they never run together; ${PORT} is a free port",
        "models.yaml:3: models.b.proxy: has port 8999, as does a: they never run together; ${PORT} is a free port",
    ]
    assert _excludes(read(text.replace("127.0.0.1", "10.0.0.9") + together)[0]) == "- -"
    assert _excludes(read(text.replace("cmd: x, ", "") + together)[0]) == "- -"


def test_what_has_no_effect_in_several_places_is_named_once(read):
    content, faults = read("models:\n  a: {cmd: vllm serve x, zzz: 1}\n  b: {model: y, zzz: 1}\n")
    assert (faults, len(content.entries)) == ([], 2)
    (notice,) = map(str, content.notices)
    assert notice.startswith("models.yaml:2: models.a.zzz: is not known here, and has no effect")
    assert notice.endswith("(in 2 places)")


def test_an_anchor_may_be_under_any_key(read):
    text = "defaults: &d {ttl: 5}\n.base: &b [x]\nunused: &u 5\nmodels: {m: {<<: *d, aliases: *b}}\n"
    assert read(text)[1] == ["models.yaml:3: unused: is not known here; known are " + ", ".join(KNOWN)]


KNOWN = load_schema()["properties"]
EMPTY_KEYS = ("cmdStop", "checkEndpoint", "aliases", "env", "ttl", "concurrencyLimit", "unlisted", "useModelName")
EMPTY_KEYS += ("name", "description", "metadata", "filters", "macros", "timeouts", "preload")


def test_a_key_without_a_value_is_no_key(read):
    lines = ["models:", "  m:", "    cmd: x ${PORT}", "    proxy:", *(f"    {key}:" for key in EMPTY_KEYS)]
    lines += [f"{key}:" for key in KNOWN if key != "models"]
    content, faults = read("\n".join(lines))
    assert (faults, content.notices) == ([], ())
    assert content.entries["m"] == read("models: {m: {cmd: 'x ${PORT}'}}")[0].entries["m"]


def test_numbers_are_texts_where_texts_are_meant(read):
    content, faults = read(
        "apiKeys: [007]\nmodels:\n  4.10: {cmd: 'x ${PORT}', aliases: [1.10, yes], name: 0x10}\n"
        "  b: {cmd: 'y ${PORT}'}\ngroups: {g: {members: [4.10]}}\nhooks: {on_startup: {preload: [1.10]}}\n"
    )
    assert faults == []
    entry = content.entries["4.10"]
    assert (entry.aliases, entry.card, entry.preload) == (("1.10", "yes"), {"name": "0x10"}, True)
    assert (entry.excludes, content.api_keys) == ({"b"}, ("007",))


def test_groups_may_be_empty_and_name_models_by_their_aliases(read):
    text = _servers("a", "b", a=", aliases: [x, a, x]")
    content, faults = read(text + "groups: {e: {members: []}, n: {swap: false}, g: {members: [x], exclusive: false}}\n")
    assert (faults, content.entries["a"].aliases) == ([], ("x",))
    assert _excludes(content) == "- a"


def test_macros_and_variables_stand_everywhere(read, monkeypatch):
    for name, value in {"TTL": "70", "IS": "true", "NAME": "big", "KEY": "0123"}.items():
        monkeypatch.setenv(name, value)
    content, faults = read(
        """
macros: {limit: 3, debug: true, wait: 90, pre: "${env.NAME}", never: 0}
globalTTL: ${wait}
healthCheckTimeout: "${wait}"
apiKeys: ["${env.KEY}"]
models:
  ${pre}-model:
    cmd: x ${PORT}
    macros: {limit: 4}
    ttl: ${env.TTL}
    concurrencyLimit: ${limit}
    unlisted: ${env.IS}
    aliases: ["${MODEL_ID}:x"]
    name: The ${pre} one
    metadata: {port: "${PORT}", limit: "${limit}", texts: [5, "${limit} and ${env.IS}"]}
    filters: {stripParams: "${pre}", setParamsByID: {"${MODEL_ID}:y": {"n": "${limit}"}}}
    env: ["PORT=${PORT}", "N=${limit}"]
  other: {model: "${pre}/${MODEL_ID}", args: {max-model-len: "${limit}", seed: 1}, env: ["DEBUG=${debug}"]}
groups: {g: {members: ["${pre}-model"], swap: "${env.IS}"}}
hooks: {on_startup: {preload: ["${pre}-model"]}}
"""
    )
    assert faults == ["models.yaml:19: groups.g.swap: must be true or false, got 'true'"]  # in quotes: a text
    entry, other = content.entries.values()
    assert (entry.name, entry.aliases, entry.preload) == ("big-model", ("big-model:x", "big-model:y"), True)
    assert (entry.ttl_s, other.ttl_s, entry.start_timeout_s) == (70, 90, 90)
    assert (entry.concurrency, entry.refuses_excess, entry.unlisted, entry.line) == (4, True, True, 7)
    meta = {"llamaswap": {"port": "${PORT}", "limit": 4, "texts": [5, "4 and true"]}}
    assert entry.card == {"name": "The big one", "meta": meta}
    assert entry.changes == BodyChanges(strip=("big",), set_by_name={"big-model:y": {"n": 4}})
    assert entry.env == {"PORT": "${PORT}", "N": "4"}
    assert (other.arguments, other.env) == (("big/other", "--max-model-len=3", "--seed=1"), {"DEBUG": "true"})
    assert content.api_keys == ("0123",)


def test_changes_of_bodies_are_read(read):
    keys = "useModelName: up, filters: {stripParams: ' a,, model ,b ', setParams: {model: x, model?: x, t: {u: 1}}}"
    own = "v: {cmd: vllm serve x, proxy: 'http://h:1', cmdStop: y"
    content, faults = read(f"models:\n  m: {{cmd: 'x ${{PORT}}', {keys}}}\n  {own}, {keys}}}\n  w: {{{keys}}}\n")
    assert faults == []
    assert [notice.key for notice in content.notices] == [
        f"models.v.{key}" for key in ("cmdStop", "proxy", "useModelName")
    ]
    changes = BodyChanges(model="up", strip=("a", "b"), set={"t": {"u": 1}})
    assert content.entries["m"].changes == changes
    assert content.entries["v"].changes == content.entries["w"].changes == replace(changes, model=None)


def test_a_server_that_runs_already_needs_no_command(read):
    content, faults = read("models: {m: {proxy: 'http://127.0.0.1:8081'}, n: {proxy: 'http://127.0.0.1:8082'}}\n")
    assert (faults, _excludes(content), content.notices) == ([], "- -", ())
    assert content.entries["m"].foreign == ForeignCommand(arguments=(), address="http://127.0.0.1:8081", port=8081)


def test_the_sleep_of_llmsnap_is_read(read):
    content, faults = read(
        """
models:
  own: {cmd: "vllm serve m --port ${PORT}", sleepMode: enable, sleepEndpoints: [{endpoint: /sleep}]}
  other:
    cmd: server ${PORT}
    sleepMode: enable
    sleepEndpoints: [{endpoint: "/sleep?level=1", method: POST, timeout: 10}]
    wakeEndpoints: [{endpoint: /wake_up}, {path: rpc, body: {method: reload_weights}, timeout: 1m}]
  without: {cmd: "server ${PORT}", sleepMode: enable}
  off: {cmd: "server ${PORT}", sleepMode: disable}
"""
    )
    assert faults == []
    own, other, without, off = content.entries.values()
    assert [each.on_swap for each in (own, other, without, off)] == ["sleep", "sleep", "sleep", "stop"]
    assert [each.sleep_levels for each in (own, other, without, off)] == [(1, 2), (1,), (), ()]
    assert other.foreign.sleep_calls == (ServerCall("POST", "/sleep?level=1", timeout_s=10),)
    assert other.foreign.wake_calls == (
        ServerCall("POST", "/wake_up"),
        ServerCall("POST", "/rpc", body='{"method": "reload_weights"}', timeout_s=60),
    )
    told = [(notice.key, notice.text.partition(":")[0]) for notice in content.notices]
    assert ("models.own.sleepEndpoints", "has no effect") in told
    assert ("models.without.sleepMode", "has no effect without `sleep` and `wake`") in told


def test_a_model_of_a_peer_is_left_out_unless_it_has_an_address(read):
    text = (
        _servers("a") + "  b: {peer: other}\n  c: {peer: other, proxy: 'http://h:1'}\ngroups: {g: {members: [a, b]}}\n"
    )
    content, faults = read(text)
    assert (faults, list(content.entries)) == ([], ["a", "c"])
    assert "see `proxy`" in {notice.key: notice.text for notice in content.notices}["models.b.peer"]


REMEDIES = {
    "policies: {p: x}": "`filters` of a model",
    "security: {cors: {allowedOrigins: ['https://a']}}": "--allowed-origins",
    "hooks: {on_request: x}": "`filters` of a model",
    "unheard: 1": "there is no key for it here",
    "peers: {p: {}}": "peers: has no effect: route to other servers",
    "routing: {scheduler: {use: fifo}}": "routing.scheduler: has no effect: the order",
    "listen: ':80'": "see --host and --port",
    "maxRunningModels: 1": "see --max-running",
    "ttl: 9": "see `globalTTL`",
    "groups: {g: {members: [m, nobody], swap: false}}": "groups.g.members[1]: 'nobody' is not a model of this file",
    "groups: {g: {members: [m], swaps: true}}": "groups.g.swaps: is not known here, and has no effect (did you mean",
    "hooks: {at_start: 1}": "hooks.at_start: is not known here",
    "hooks: {on_startup: {preload: ['', m]}}": "hooks.on_startup.preload[0]: '' is not a model",
    "hooks: {on_startup: {preload: [m, x]}}": "hooks.on_startup.preload[1]: 'x' is not a model",
    "used: [1]": "used: is not known here",
    "{capabilities: {tools: true}": "has no effect: clients learn",
    "{sendLoadingState: true": "has no effect: streams get comments",
    "{compat: {ignoreWebsockets: true}": "has no effect: a WebSocket",
    "{port: 5": "see --port",
    "unloadAfter: 300": "see `ttl` of a model, `globalTTL` of all",
    "{unload: 120": "see `ttl` of a model, `globalTTL` of all",
    "{filters: {policy: p}": "see `stripParams` and `setParams`",
    "{filters: {setParamsByMatch: []}": "`setParamsByID`",
    "{filters: {reasoning: {}}": "`setParamsByID`",
    "{check_endpoint: x": "did you mean 'checkEndpoint'?",
    "{UseModelName: x": "did you mean 'useModelName'?",
    "{aliasses: x": "did you mean 'aliases'?",
    "{cmdStart: x": "there is no key for it here",
    "{proxies: x": "there is no key for it here",
    "{aliasGroups: x": "there is no key for it here",
}
"""Keys of the file, or of its model after a brace -> what a notice says. A similar key is no guess."""


@pytest.mark.parametrize(("keys", "remedy"), REMEDIES.items())
def test_a_key_without_effect_is_named_with_what_to_use(read, keys, remedy):
    own, of_file = (f", {keys[1:]}", "") if keys[0] == "{" else ("", f"{keys}\n")
    content, faults = read(_servers("m", m=own) + of_file)
    assert faults == []
    assert [remedy in str(notice) for notice in content.notices] == [True]
