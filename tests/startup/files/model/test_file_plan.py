"""A file plan lists the files that a start reads, in this order, and the names of files to download.

tests/vllm_engine/test_opened_files.py compares plans with the files that real vLLM opens.
"""

import json
from pathlib import Path

import pytest

from startup.files.model.file_plan import FilePlan, plan_files
from startup.files.model.model_place import unfinished_marker
from startup.files.model.model_request import DraftModel, ModelRequest
from startup.files.model.wanted_files import WantedFiles
from startup.vllm_arguments.vllm_line import VllmLine

SHARDS = [f"model-{i:05}-of-00003.safetensors" for i in (1, 2, 3)]
TOKENIZER = ["tokenizer.json", "tokenizer_config.json"]


def make(folder: Path, *names: str, weight_map: dict[str, str] | None = None) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    if weight_map is not None:
        index = "consolidated" if "consolidated" in next(iter(weight_map.values())) else "model"
        (folder / f"{index}.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def read(plan: FilePlan, *, prefetched: bool = False) -> list[str]:
    return [path.name for path in (plan.prefetched if prefetched else plan.read_order)]


def weights_of(model: Path, **settings: object) -> list[str]:
    plan = plan_files(ModelRequest(model=str(model), engine="vllm", **settings))  # type: ignore[arg-type]
    return [name for name in read(plan) if not name.endswith((".json", ".txt", ".jinja"))]


def snapshot(cache: Path, repo: str, *names: str, ref: str = "main", commit: str = "a" * 40) -> Path:
    folder = cache / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / ref).write_text(commit)
    return make(folder / "snapshots" / commit, *names)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make(tmp_path / "model", "config.json", *TOKENIZER, "README.md", "model.safetensors", "pytorch_model.bin")


@pytest.mark.parametrize("engine", ["embedded", "vllm"])
def test_the_configuration_comes_first_and_weights_last(model, engine):
    plan = plan_files(ModelRequest(model=str(model), engine=engine))  # type: ignore[arg-type]
    assert read(plan) == read(plan, prefetched=True) == ["config.json", *TOKENIZER, "model.safetensors"]
    assert plan.downloads == ()
    assert plan.is_on_disk


def test_shards_are_read_in_the_order_of_their_numbers(tmp_path):
    names = [f"model-{i}-of-11.safetensors" for i in range(1, 12)]
    assert weights_of(make(tmp_path, *reversed(names))) == names


def test_vllm_reads_only_the_files_of_the_index(tmp_path):
    make(tmp_path, *SHARDS, "model.safetensors", "extra.safetensors", weight_map={"a": SHARDS[0], "b": SHARDS[2]})
    assert weights_of(tmp_path) == [SHARDS[0], SHARDS[2]]
    assert weights_of(tmp_path, load_format="runai_streamer") == ["extra.safetensors", *SHARDS, "model.safetensors"]


@pytest.mark.parametrize(
    ("load_format", "expected", "is_cached"),
    [
        ("auto", ["consolidated.safetensors"], True),
        ("ipc_cache", ["consolidated.safetensors"], False),
        ("mistral", ["consolidated.safetensors"], True),
        ("hf", SHARDS, True),
        ("safetensors", SHARDS, True),
        ("fastsafetensors", SHARDS, False),
        ("instanttensor", SHARDS, False),
        ("runai_streamer_sharded", ["consolidated.safetensors", *SHARDS], False),
        ("pt", ["model.pt"], True),
        ("npcache", ["pytorch_model.bin"], True),
        ("sharded_state", ["consolidated.safetensors", *SHARDS], True),
        ("dummy", [], False),
        ("tensorizer", [], False),
    ],
)
def test_a_load_format_reads_its_own_files_maybe_through_the_page_cache(tmp_path, load_format, expected, is_cached):
    names = ("consolidated.safetensors", "model.pt", "pytorch_model.bin", "training_args.bin", "optimizer.pt")
    make(tmp_path, *names, *SHARDS, weight_map=dict(zip("abc", SHARDS, strict=True)))
    assert weights_of(tmp_path, load_format=load_format) == expected
    plan = plan_files(ModelRequest(model=str(tmp_path), engine="vllm", load_format=load_format))
    assert {*expected} & {*read(plan, prefetched=True)} == ({*expected} if is_cached else set())


def test_files_in_memory_are_not_prefetched(model, monkeypatch):
    device = (model / "config.json").stat().st_dev
    monkeypatch.setattr("startup.files.model.file_plan.memory_devices", lambda: {device})
    plan = plan_files(ModelRequest(model=str(model)))
    assert plan.prefetched == ()
    assert read(plan) != []


@pytest.mark.parametrize(
    ("load_format", "names", "expected"),
    [
        ("auto", [*SHARDS, "model.safetensors.index.json", "x.safetensors", "a.bin"], SHARDS),
        ("auto", ["pytorch_model.bin", "optimizer.bin", "model.pt"], ["pytorch_model.bin"]),
        ("auto", ["consolidated.safetensors", *SHARDS], ["consolidated.safetensors"]),
        ("hf", ["consolidated.safetensors", *SHARDS, "model.safetensors.index.json"], SHARDS),
        ("auto", ["original/consolidated.00.pth", "model.safetensors", "onnx/model.onnx"], ["model.safetensors"]),
        ("dummy", ["model.safetensors"], []),
    ],
)
def test_the_files_to_download_are_chosen_by_the_listing(load_format, names, expected, cache):
    (download,) = plan_files(ModelRequest(model="org/model", engine="vllm", load_format=load_format)).downloads
    chosen = download.wanted.choose([*names, "config.json", "README.md", "LICENSE.txt"])
    assert [name for name in chosen if not name.endswith(".json")] == expected
    assert "config.json" in chosen


def test_the_index_is_named_and_its_content_decides(cache):
    (download,) = plan_files(ModelRequest(model="org/model", engine="vllm")).downloads
    names = [*SHARDS, "other.safetensors", "model.safetensors.index.json"]
    assert download.wanted.index_of(names) == "model.safetensors.index.json"
    assert download.wanted.choose(names, {"a": "other.safetensors"}) == [names[-1], "other.safetensors"]


def test_patterns_of_ignored_files_apply_to_downloads_alone(cache, tmp_path):
    settings = {"engine": "vllm", "ignore_patterns": ("*.safetensors",)}
    (download,) = plan_files(ModelRequest(model="org/model", **settings)).downloads  # type: ignore[arg-type]
    assert download.wanted.choose(["model.safetensors", "model.bin"]) == ["model.bin"]
    assert weights_of(make(tmp_path, "model.safetensors"), ignore_patterns=("*.safetensors",)) == ["model.safetensors"]


def test_a_snapshot_of_the_given_revision_is_read(cache):
    snapshot(cache, "org/model", "config.json", "tokenizer.json", "model.safetensors")
    other = snapshot(cache, "org/model", *TOKENIZER, "config.json", "model.safetensors", ref="v2", commit="b" * 40)
    plan = plan_files(ModelRequest(model="org/model", revision="v2", engine="vllm"))
    assert plan.files.path == other
    assert plan_files(ModelRequest(model="org/model", revision="v3", engine="vllm")).downloads[0].revision == "v3"


def test_a_snapshot_without_what_its_index_names_is_incomplete(cache):
    folder = snapshot(cache, "org/model", "config.json", "tokenizer.json", SHARDS[0])
    make(folder, weight_map={"a": SHARDS[0], "b": SHARDS[1]})
    assert not plan_files(ModelRequest(model="org/model", engine="vllm")).is_on_disk
    make(folder, SHARDS[1])
    assert plan_files(ModelRequest(model="org/model", engine="vllm")).is_on_disk


def test_a_large_index_is_read_unless_the_shards_are_one_complete_set(tmp_path):
    make(tmp_path, *SHARDS, "stray.safetensors", weight_map={f"{i:09}": SHARDS[0] for i in range(20_000)})
    assert weights_of(tmp_path) == SHARDS
    (tmp_path / SHARDS[2]).unlink()
    assert weights_of(tmp_path) == [SHARDS[0]]


def test_a_snapshot_whose_download_is_not_finished_is_incomplete(cache):
    folder = snapshot(cache, "org/model", "config.json", "tokenizer.json", "model.safetensors")
    unfinished_marker(folder).touch()
    plan = plan_files(ModelRequest(model="org/model"))
    assert (plan.model.kind, plan.model.folder, plan.files) == ("hub", folder, None)


def test_each_place_has_its_own_files(cache, tmp_path, model):
    request = ModelRequest(
        engine="vllm",
        model=str(model),
        tokenizer="org/words",
        tokenizer_revision="v1",
        hf_config_path="org/config",
        generation_config="org/generation",
        hf_token="secret",
        draft=DraftModel("org/draft", "v2"),
        adapters=("org/adapter", str(tmp_path / "b")),
    )
    make(tmp_path / "b", "adapter_config.json", "adapter_model.safetensors", "README.md", "adapter_model.bin")
    plan = plan_files(request)
    assert [(d.repo_id, d.revision, d.wanted.role) for d in plan.downloads] == [
        ("org/words", "v1", "tokenizer"),
        ("org/config", None, "config"),
        ("org/generation", None, "generation_config"),
        ("org/draft", "v2", "draft"),
        ("org/adapter", None, "adapter"),
    ]
    assert {download.token for download in plan.downloads} == {"secret"}
    names = ["config.json", "generation_config.json", "tokenizer.json", "model.safetensors", "adapter_config.json"]
    chosen = [download.wanted.choose([*names, "adapter_model.bin"]) for download in plan.downloads]
    assert chosen[0] == ["config.json", "adapter_config.json", "generation_config.json", "tokenizer.json"]
    assert chosen[1] == chosen[2] == ["config.json", "generation_config.json"]
    assert chosen[3][-1] == "model.safetensors"
    assert chosen[4] == ["adapter_config.json", "adapter_model.bin"]
    assert read(plan)[-2:] == ["model.safetensors", "adapter_model.safetensors"]


@pytest.mark.parametrize(
    ("name", "variable", "value"),
    [
        ("org/model:Q4_K_M", "HF_HOME", "/hf"),
        ("org/model/model-Q4_K_M.gguf", "HF_HOME", "/hf"),
        ("s3://bucket/model", "HF_HOME", "/hf"),
        ("org/model", "VLLM_USE_MODELSCOPE", "True"),
        ("org/model", "VLLM_MODEL_REDIRECT_PATH", "/table"),
    ],
)
def test_what_only_vllm_finds_is_left_to_it(name, variable, value, monkeypatch):
    monkeypatch.setenv(variable, value)
    plan = plan_files(ModelRequest(model=name, engine="vllm"))
    assert (plan.model.kind, plan.read_order, plan.downloads, plan.is_on_disk) == ("vllm", (), (), False)


def test_a_local_folder_is_read_where_it_is_with_modelscope(model, monkeypatch):
    monkeypatch.setenv("VLLM_USE_MODELSCOPE", "True")
    assert plan_files(ModelRequest(model=str(model), engine="vllm")).model_folder == model


_CONFIG = "model: org/model\nrevision: v1\nload-format: SAFETENSORS\nlora-modules: [b=org/b]\n"
_SPECULATION = '{"model":"org/draft","revision":"v4","draft_load_config":{"load_format":"DUMMY"}}'


@pytest.mark.parametrize(
    ("arguments", "fields"),
    [
        (
            "--config FILE --revision v2 --tokenizer org/words --tokenizer_revision v3 --skip-tokenizer-init"
            f" --speculative-config {_SPECULATION} --hf-config-path org/config --download-dir /models"
            " --hf-token secret --ignore-patterns *.pt *.bin",
            {
                "model": "org/model",
                "revision": "v2",
                "tokenizer": "org/words",
                "tokenizer_revision": "v3",
                "has_tokenizer": False,
                "hf_config_path": "org/config",
                "download_dir": "/models",
                "hf_token": "secret",
                "load_format": "safetensors",
                "ignore_patterns": ("*.pt", "*.bin"),
                "adapters": ("org/b",),
                "draft": DraftModel("org/draft", "v4", "dummy"),
            },
        ),
        ("m --lora-modules a=/a b=org/b", {"adapters": ("/a", "org/b")}),
        ('m --lora-modules {"name":"a","path":"/a"} --port 1', {"adapters": ("/a",)}),
        ('m --default-mm-loras {"audio":"org/x"}', {"adapters": ("org/x",)}),
        ("m --lora-modules {oops", {}),
        ('m --speculative-config {"method":"ngram"}', {}),
        ('m --speculative-config {"model":"ngram"}', {}),
        ('m --speculative-config {"method":"mtp"}', {}),
        ('m --speculative-config {"method":"mtp","model":"org/m-assistant"}', {"draft": DraftModel("org/m-assistant")}),
        ("m --speculative-config oops", {}),
        ("m --speculative-config []", {}),
    ],
)
def test_flags_and_files_of_vllm_make_a_request(arguments, fields, tmp_path):
    (tmp_path / "vllm.yaml").write_text(_CONFIG)
    line = VllmLine.of(arguments.replace("FILE", str(tmp_path / "vllm.yaml")).split())
    assert line.request == ModelRequest(engine="vllm", **{"model": "m"} | fields)


def test_a_missing_folder_has_nothing_to_read(tmp_path):
    plan = plan_files(ModelRequest(model=str(tmp_path / "gone")))
    assert (plan.model.kind, plan.read_order, plan.downloads) == ("nowhere", (), ())


def test_all_modules_of_an_embedder_are_downloaded():
    names = ("config.json", "modules.json", "1_Pooling/config.json", "2_Dense/config.json")
    wanted = [*names, "model.safetensors", "2_Dense/model.safetensors"]
    others = ["2_Dense/pytorch_model.bin", "onnx/model.onnx", "onnx/config.json", "1_Pooling/deep/config.json"]
    assert WantedFiles(role="model").choose([*wanted, *others]) == wanted
    assert WantedFiles(role="tokenizer").choose([*wanted, *others]) == ["config.json", "modules.json"]
