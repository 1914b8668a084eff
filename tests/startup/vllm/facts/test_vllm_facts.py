"""Facts about a vLLM are read from its sources: each form of code that says something about a flag.

That the facts are right for real versions is proven by tests/vllm_engine/test_vllm_facts.py.
"""

import json
from pathlib import Path

import pytest

from startup.vllm.facts import installed_facts
from startup.vllm.facts.installed_facts import read_facts, read_facts_in
from startup.vllm.facts.vllm_facts import FlagFact, VllmFacts
from startup.vllm.installed import InstalledVllm
from startup.vllm.preflight.arguments import read_arguments
from tests.startup.vllm.facts.small_vllm import change, write_small_vllm


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> VllmFacts:
    folder = tmp_path_factory.mktemp("site")
    write_small_vllm(folder)
    return read_facts_in(folder)


def _flag(facts: VllmFacts, name: str) -> FlagFact:
    return next(flag for flag in facts.flags if name in flag.names)


def test_every_flag_is_found(facts):
    assert facts.has_all_flags
    names = {flag.name for flag in facts.flags}
    assert {"--headless", "--config", "--host", "--lora-modules", "--model", "--enable-log-requests"} <= names
    assert len(facts.flags) == 60


def test_documentation_is_not_taken_for_a_field(facts):
    assert len([flag for flag in facts.flags if flag.name == "--model"]) == 1
    assert not any(flag.name == "--size" for flag in facts.flags)


@pytest.mark.parametrize(
    ("name", "kind", "nargs"),
    [
        ("--headless", "text", 0),
        ("--api-server-count", "int", None),
        ("--host", "text", None),
        ("--lora-modules", "unknown", "+"),
        ("--api-key", "text", "+"),
        ("--allowed-origins", "json", None),
        ("--middleware", "text", None),
        ("--default-chat-template-kwargs", "json", None),
        ("--enable-prefix-caching", "unknown", 0),
        ("--max-model-len", "size or auto", None),
        ("--max-num-batched-tokens", "size", None),
        ("--max-num-seqs", "int", None),
        ("--capture-sizes", "int", "+"),
        ("--hf-token", "text", "?"),
        ("--hf-overrides", "json or text", None),
        ("--served-model-name", "text", "+"),
        ("--quantization", "text", None),
        ("--compilation-config", "object", None),
        ("--gpu-memory-utilization", "float", None),
        ("--moe-backend", "folded", None),
        ("--device-ids", "unknown", None),
        ("--optimization-level", "int", None),
    ],
)
def test_kind_and_number_of_values(facts, name, kind, nargs):
    flag = _flag(facts, name)
    assert (flag.kind, flag.nargs) == (kind, nargs)


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("--dtype", ("auto", "float16", "half")),
        ("--uvicorn-log-level", ("critical", "error", "info")),
        ("--all2all-backend", ("deepep", "naive")),
        ("--moe-backend", ("auto", "deep_gemm")),
        ("--log-level", ("debug", "info")),
        ("--max-lora-rank", (8, 16, 64)),
        ("--quantization", None),
        ("--load-format", None),
    ],
)
def test_choices(facts, name, choices):
    assert _flag(facts, name).choices == choices


def test_names_and_opposites(facts):
    assert _flag(facts, "-q").names == ("--quantization", "-q")
    assert _flag(facts, "--device-memory-utilization").name == "--gpu-memory-utilization"
    assert _flag(facts, "--enable-prefix-caching").opposites == ("--no-enable-prefix-caching",)
    assert _flag(facts, "--headless").opposites == ()
    assert _flag(facts, "--host").is_optional
    assert not _flag(facts, "--port").is_optional


def test_opposites_from_0_33_on(vllm):
    """A parser that pairs the two beginnings of names."""
    path = vllm.folder / "utils" / "argparse_utils.py"
    path.parent.mkdir()
    prefixes = '{"--enable-": "--disable-", "--disable-": "--enable-"}'
    path.write_text(f"class EnableDisableAction:\n    _inverse_prefixes = {prefixes}\n")
    facts = read_facts(vllm)
    assert _flag(facts, "--enable-lora").opposites == ("--no-enable-lora", "--disable-lora")
    arguments = read_arguments(["m", "--disable-lora"], facts)
    assert (arguments.unknown, arguments.has("--enable-lora")) == ([], False)
    assert _flag(read_facts(vllm), "--enable-lora").opposites == ("--no-enable-lora", "--disable-lora"), "recorded"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('parser.add_argument("--headless"', 'parser.add_argument(f"--{name}"'),
        ("parser = FrontendArgs.add_cli_args(parser)", "parser = add_more_flags(parser)"),
    ],
    ids=["name", "function"],
)
def test_flags_that_are_added_in_an_unknown_way_make_the_list_incomplete(tmp_path, old, new):
    package = write_small_vllm(tmp_path)
    change(package, "entrypoints/launchers/cli_args.py", old, new)
    assert not read_facts_in(tmp_path).has_all_flags


def test_an_unknown_type_leaves_the_values_unchecked(tmp_path):
    package = write_small_vllm(tmp_path)
    change(package, "config/cache.py", "kv_cache_memory_bytes: int | None", "kv_cache_memory_bytes: Unknown")
    facts = read_facts_in(tmp_path)
    assert facts.has_all_flags
    assert _flag(facts, "--kv-cache-memory-bytes").kind == "unknown"


def test_a_folder_without_vllm_has_no_facts(tmp_path):
    facts = read_facts_in(tmp_path)
    assert (facts.flags, facts.has_all_flags) == ((), False)


def test_plugins_of_other_packages_are_found(tmp_path, monkeypatch):
    write_small_vllm(tmp_path)
    for name, value in (("own", "own.plugin:register"), ("vllm", "vllm.plugins.lora:register")):
        metadata = tmp_path / f"{name}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "entry_points.txt").write_text(
            f"[console_scripts]\nx = y:z\n\n[vllm.general_plugins]\n{name} = {value}\n"
        )
    facts = read_facts_in(tmp_path)
    assert [plugin.name for plugin in facts.installed_plugins] == ["own"]
    assert facts.plugins == facts.installed_plugins
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    assert facts.plugins == ()


@pytest.fixture
def vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> InstalledVllm:
    package = write_small_vllm(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    return InstalledVllm("0.32.0", package)


def test_facts_are_recorded_and_read_again(vllm, monkeypatch):
    first = read_facts(vllm)
    monkeypatch.setattr(installed_facts, "read_sources", lambda *_: pytest.fail("read again"))
    again = read_facts(vllm)
    assert json.loads(json.dumps(again)) == json.loads(json.dumps(first))


def test_facts_are_read_again_when_a_source_changes(vllm):
    assert _flag(read_facts(vllm), "--dtype").choices == ("auto", "float16", "half")
    change(vllm.folder, "config/model.py", '"float16"', '"float8"')
    assert _flag(read_facts(vllm), "--dtype").choices == ("auto", "float8", "half")


def test_facts_are_read_again_when_another_folder_has_a_plugin(vllm, tmp_path, monkeypatch):
    assert read_facts(vllm).installed_plugins == ()
    metadata = tmp_path / "plugins" / "own-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "entry_points.txt").write_text("[vllm.general_plugins]\nown = own.plugin:register\n")
    monkeypatch.syspath_prepend(str(tmp_path / "plugins"))
    assert [plugin.name for plugin in read_facts(vllm).installed_plugins] == ["own"]


@pytest.mark.parametrize("content", ["", "{}", '{"folders": [], "files": {}, "facts": {"flags": 1}}', "[1]"])
def test_a_damaged_record_is_replaced(vllm, tmp_path, content):
    first = read_facts(vllm)
    (path,) = (tmp_path / "cache" / "vllm_cli" / "vllm-facts").iterdir()
    path.write_text(content)
    assert len(read_facts(vllm).flags) == len(first.flags)
    assert path.read_text() != content
