"""Weight files in load order, and which ones are missing. GGUF models, their names and their conversion."""

import json
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from startup.files.model import gguf_conversion
from startup.files.model.checkpoint_folder import find_weight_files, model_problem
from startup.files.model.gguf import GgufModel, find_gguf, read_header
from startup.files.model.model_place import FolderListing
from startup.files.model.wanted_files import WantedFiles
from tests.support.gguf_file import GgufTensor, write_gguf, write_model, write_projector

_PARTS = ["Q4_K_M", "q4_k_m", "UD-Q4_K_XL", "UD-IQ1_S", "I-COMPACT", "Qwen3-0.6B.Q8_0", "MXFP4_MOE", "a+b"]
_OTHERS = {
    "a-eagle3.gguf": {"general__architecture": "eagle3", "general__type": "model"},
    "a-dflash.gguf": {"general__architecture": "dflash"},
    "a-imatrix.gguf": {"general__type": "imatrix", "datasets": ["x"]},
    "a-adapter.gguf": {"general__type": "adapter", "general__architecture": "qwen3"},
    "a-projector.gguf": {"general__architecture": "clip"},
    "MTP-a.gguf": {"general__architecture": "qwen3", "general__type": "model"},
    "a-mtp-Q8_0.gguf": {"general__architecture": "qwen3"},
    **dict.fromkeys(("a-mmproj-F16.gguf", "imatrix.gguf", "eagle3-a.gguf")),
}
"""Name -> header of files that are no models: by the header, or by the name if the header does not tell."""


def _find(place: Path) -> GgufModel:
    found = find_gguf(str(place))
    assert found is not None
    return found


@pytest.mark.parametrize(
    "name",
    [
        *(f"unsloth/Qwen3-0.6B-GGUF:{part}" for part in _PARTS),
        *("team_1/m.x_GGUF:i1-Q4_K_M", "Team/plain:Q4_K_M", "t/MODEL.gguf:Q8_0"),
        *("ggml-org/gemma-3-4b-it-GGUF", "team/m.gguf", "team/m-gguf"),
    ],
)
def test_a_name_on_the_hub_has_gguf_or_any_part_of_a_file_s_name(name):
    assert _find(Path(name)).arguments == ("-hf", name)


@pytest.mark.parametrize(
    "name", ["team/model", "team/model:main", "llama3:8b", "ollama.com/x:8b", "team/a b:Q4", "team/m:refs/pr/1", "gguf"]
)
def test_other_names_are_no_gguf(name):
    assert find_gguf(name) is None


@pytest.mark.parametrize("other", _OTHERS)
@pytest.mark.parametrize("place", [".", "Q4_K_M"], ids=["folder", "subfolder"])
def test_the_header_decides_which_file_is_the_model(other, place, tmp_path):
    folder = tmp_path / place
    folder.mkdir(exist_ok=True)
    (folder / other).touch()
    if _OTHERS[other]:
        write_gguf(folder / other, **_OTHERS[other])
    model = write_model(folder / "qwen-mmproj-test.gguf")  # its name says something else
    assert _find(tmp_path).arguments == ("-m", str(model))


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["b-BF16.gguf", "b-Q4_K_M.gguf", "b-Q8_0.gguf"], "b-Q4_K_M.gguf"),
        (["b-BF16.gguf", "b-q8_0.gguf"], "b-q8_0.gguf"),
        (["z.gguf", "y.gguf"], "y.gguf"),
        (["b-00001-of-00002.gguf", "b-00002-of-00002.gguf", "c.gguf"], "b-00001-of-00002.gguf"),
        (["a.gguf"], "a.gguf"),
    ],
)
def test_of_several_models_one_is_served_and_the_others_are_named(names, chosen, tmp_path):
    for name in names:
        write_model(tmp_path / name)
    found = _find(tmp_path)
    assert (found.arguments, found.missing, found.projector) == (("-m", str(tmp_path / chosen)), (), None)
    others = [name for name in names if name != chosen and "00002-of" not in name]
    assert found.choice.startswith(f"{chosen} of {tmp_path} is served, not ") == bool(others)
    assert all(name in found.choice for name in others)


@pytest.mark.parametrize("name", ["._b-Q4_K_M.gguf", "a-Q4_K_M.gguf", "mmproj-a.gguf", "lost.gguf"])
@pytest.mark.parametrize("content", [b"", b"\0\5\x16\7", None], ids=["empty", "sidecar", "link"])
def test_a_file_that_only_looks_like_a_model_is_never_served(name, content, tmp_path):
    model = write_model(tmp_path / "b-Q8_0.gguf")
    if content is None:
        (tmp_path / name).symlink_to("gone")
    else:
        (tmp_path / name).write_bytes(content)
    found = _find(tmp_path)
    assert (found.arguments, found.projector) == (("-m", str(model)), None)
    assert found.choice.startswith(f"{tmp_path / name} is ") != name.startswith(".")
    assert find_gguf(str(tmp_path / name)) is None


@pytest.mark.parametrize(
    "part", ["m-00001-of-00003.gguf", "m-00003-of-00003.gguf", ""], ids=["first", "last", "folder"]
)
def test_any_part_stands_for_the_whole_and_missing_parts_are_named(part, tmp_path):
    for number in (1, 3):
        write_model(tmp_path / f"m-0000{number}-of-00003.gguf")
    found = _find(tmp_path / part)
    assert found.arguments == ("-m", str(tmp_path / "m-00001-of-00003.gguf"))
    assert found.missing == ("m-00002-of-00003.gguf",)


@pytest.mark.parametrize("name", ["mmproj-F16.gguf", "q-mmproj-BF16.gguf", "vision.gguf"])
@pytest.mark.parametrize("is_file", [True, False], ids=["file", "folder"])
def test_a_projector_beside_the_model_is_used(name, is_file, tmp_path):
    model, projector = write_model(tmp_path / "q.gguf"), write_projector(tmp_path / name)
    found = _find(model if is_file else tmp_path)
    assert (found.projector, found.choice) == (projector, "")


def test_the_projector_of_another_model_is_named_but_not_used(tmp_path):
    model = write_model(tmp_path / "q.gguf")
    write_projector(tmp_path / "mmproj-1.gguf", 2048)
    for projector in (None, tmp_path / "mmproj-2.gguf"):
        if projector is not None:
            write_projector(projector)
        found = _find(model)
        assert (found.projector, "not mmproj-1.gguf" in found.choice) == (projector, True)


@pytest.mark.parametrize("name", ["blob", "model.GGUF", "model.v1.2.gguf"])
def test_a_file_is_known_by_its_content_or_its_ending(name, tmp_path):
    file = write_model(tmp_path / name)
    assert _find(file).arguments == ("-m", str(file))


def test_a_configuration_alone_is_no_other_model(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    model = write_model(tmp_path / "a.gguf")
    assert _find(tmp_path).arguments == ("-m", str(model))
    (tmp_path / "model.safetensors").touch()
    assert find_gguf(str(tmp_path)) is None


def test_a_header_ends_where_its_facts_end(tmp_path):
    file = write_gguf(tmp_path / "a.gguf", general__architecture="qwen3", tokens=["a"] * 20_000, after="x")
    assert read_header(file) == {"general.architecture": "qwen3"}  # the list is longer than what is read
    write_gguf(file, tokens=["a", "b"], after="x", size=7)
    assert read_header(file) == {"after": "x", "size": 7}


@pytest.mark.parametrize("number", [2**64 - 1, 2**32, 3], ids=["most", "many", "few"])
@pytest.mark.parametrize("kind", [8, 9, 4, 255])
def test_a_header_with_false_numbers_is_read_as_far_as_it_goes(number, kind, tmp_path):
    fact = struct.pack("<Q", 1) + b"a" + struct.pack("<IQQ", kind, 4, number)
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, number, number) + fact * 50)
    assert len(read_header(tmp_path / "a.gguf")) <= 50


HIDDEN, HEADS, KV_HEADS, VOCAB = 64, 2, 1, 4
F32, Q4_1, Q8_0 = 0, 3, 8


def _floats(*shape: int) -> GgufTensor:
    """A tensor whose rows are numbered from 0."""
    values = torch.arange(shape[0]).repeat_interleave(shape[1] if len(shape) > 1 else 1)
    return GgufTensor(shape, F32, values.float().numpy().tobytes())


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A Llama with one layer. Its embeddings are of type Q8_0, a layer's projection of type Q4_1."""
    q8 = struct.pack("<e32b", 0.5, *range(-16, 16)) * (VOCAB * HIDDEN // 32)
    q4 = struct.pack("<ee16B", 2.0, -1.0, *(low | (15 - low) << 4 for low in range(16))) * (HIDDEN * HIDDEN // 32)
    square = _floats(HIDDEN, HIDDEN)
    layer = {
        "attn_norm": _floats(HIDDEN),
        "attn_q": square,
        "attn_k": _floats(HIDDEN // 2, HIDDEN),
        "attn_v": _floats(HIDDEN // 2, HIDDEN),
        "attn_output": square,
        "ffn_norm": _floats(HIDDEN),
        "ffn_gate": square,
        "ffn_up": square,
        "ffn_down": GgufTensor((HIDDEN, HIDDEN), Q4_1, q4),
    }
    return write_gguf(
        tmp_path / "model.gguf",
        {
            "token_embd.weight": GgufTensor((VOCAB, HIDDEN), Q8_0, q8),
            **{f"blk.0.{name}.weight": tensor for name, tensor in layer.items()},
            "output_norm.weight": _floats(HIDDEN),
        },
        llama__vocab_size=VOCAB,
        llama__embedding_length=HIDDEN,
        llama__feed_forward_length=HIDDEN,
        llama__block_count=1,
        llama__attention__head_count=HEADS,
        llama__attention__head_count_kv=KV_HEADS,
        llama__attention__layer_norm_rms_epsilon=1e-5,
        llama__context_length=128,
        llama__rope__freq_base=1e4,
        tokenizer__ggml__tokens=["<end>", "a", "b", "ab"],
        tokenizer__ggml__token_type=[3, 1, 1, 1],
        tokenizer__ggml__merges=["a b"],
        tokenizer__ggml__bos_token_id=0,
        tokenizer__ggml__eos_token_id=0,
        tokenizer__ggml__padding_token_id=0,
        tokenizer__ggml__unknown_token_id=0,
        tokenizer__chat_template="{{ messages }}",
    )


def test_each_type_becomes_bfloat16_and_heads_have_the_order_of_transformers(source, tmp_path):
    gguf_conversion.convert(source, tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert weights["model.embed_tokens.weight"][3, :32].tolist() == [number / 2 for number in range(-16, 16)]
    of_block = [2.0 * number - 1.0 for number in (*range(16), *range(15, -1, -1))]
    assert weights["model.layers.0.mlp.down_proj.weight"][0].tolist() == of_block * 2
    halves = [*range(0, 32, 2), *range(1, 32, 2)]
    rows = {name: weights[f"model.layers.0.self_attn.{name}_proj.weight"][:, 0].tolist() for name in "qkv"}
    assert rows == {"q": [*halves, *(32 + row for row in halves)], "k": halves, "v": [*range(32)]}


@pytest.mark.thorough
def test_the_folder_is_a_model_with_its_tokenizer(source, tmp_path):
    """The conversion is a script that imports neither torch nor transformers."""
    arguments = [sys.executable, "-X", "importtime", "-P", gguf_conversion.__file__, source, tmp_path / "model"]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True)
    assert not {"torch", "transformers"} & {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert model_problem(tmp_path / "model") is None
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (config["model_type"], config["num_key_value_heads"], config["eos_token_id"]) == ("llama", KV_HEADS, 0)
    tokenizer = Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json"))
    assert tokenizer.encode("ab<end>a").ids == [3, 0, 1]
    assert (tmp_path / "model" / "chat_template.jinja").read_text() == "{{ messages }}"


INDEX = "model.safetensors.index.json"
ONE, TWO, THREE = (f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3))
OF_TORCH = [f"pytorch_model-0000{number}-of-00003.bin" for number in (1, 2, 3)]


def make(folder: Path, names: Sequence[str], index: Sequence[str] = (), index_name: str = INDEX) -> Path:
    """Writes empty files, and an index that names these shards."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    if index:
        (folder / index_name).write_text(json.dumps({"weight_map": {name: name for name in index}}))
    return folder


def found(folder: Path) -> tuple[list[str], list[str]]:
    """The existing weights, and the missing weights."""
    files = find_weight_files(folder)
    return [str(path.relative_to(folder)) for path in files.present], list(files.missing)


def chosen(folder: Path) -> list[str]:
    """The weights that a start chooses by the names of files, as before a download."""
    listing, wanted = FolderListing(folder), WantedFiles(role="model")
    return wanted.choose_weights(listing.names, listing.weight_map_of(wanted))


@pytest.mark.parametrize(
    ("names", "index", "present", "missing"),
    [
        (["model.safetensors", "pytorch_model.bin", "model.fp16.safetensors"], [], ["model.safetensors"], []),
        (["pytorch_model.bin", "training_args.bin", "tf_model.h5"], [], ["pytorch_model.bin"], []),
        (["consolidated.safetensors", "model.safetensors"], [], ["model.safetensors"], []),
        (["weights.safetensors", "pytorch_model.bin"], [], ["pytorch_model.bin"], []),
        (["b.safetensors", "a.safetensors", "notes.bin"], [], ["a.safetensors", "b.safetensors"], []),
        (["training_args.bin", "notes.txt", "tf_model.h5"], [], [], []),
        ([THREE, ONE, TWO, "consolidated.safetensors"], [THREE, ONE, TWO], [ONE, TWO, THREE], []),
        ([ONE, "model-00001-of-00001.safetensors"], [ONE], [ONE], []),
        ([TWO], [ONE, TWO], [TWO], [ONE]),
        (OF_TORCH[1:2], [], OF_TORCH[1:2], [OF_TORCH[0], OF_TORCH[2]]),
        (["model-1-of-99999999999.safetensors"], [], ["model-1-of-99999999999.safetensors"], []),
    ],
)
def test_the_weights_of_one_format_are_chosen_as_by_transformers(names, index, present, missing, tmp_path):
    """The names of shards without an index say how many there are, unless the number is absurd."""
    make(tmp_path, names, index)
    assert found(tmp_path) == (present, missing)
    assert chosen(tmp_path) == present


def test_a_dangling_link_is_a_missing_shard(tmp_path):
    make(tmp_path, [], [ONE])
    (tmp_path / ONE).symlink_to("gone")
    assert found(tmp_path) == ([], [ONE])


@pytest.mark.parametrize("text", ["", "[]", '{"weight_map": []}', '{"weight_map": {"a": 1}}'])
def test_an_invalid_index_counts_as_none(tmp_path, text):
    make(tmp_path, ["model-00001-of-00001.safetensors"])
    (tmp_path / INDEX).write_text(text)
    assert found(tmp_path) == (["model-00001-of-00001.safetensors"], [])
    assert find_weight_files(tmp_path).shard_of == {}


@pytest.mark.parametrize(("index", "end"), [(INDEX, ".safetensors"), ("pytorch_model.bin.index.json", ".bin")])
@pytest.mark.parametrize("names", [["a", "sub/b"], ["x/y/a"], ["model-00001-of-00002", "s/b"]])
def test_the_index_says_where_the_shards_lie(names, index, end, tmp_path):
    shards = [f"{name}{end}" for name in names]
    make(tmp_path, shards, shards, index)
    assert found(tmp_path) == (shards, [])
    assert chosen(tmp_path) == shards
    (tmp_path / shards[-1]).unlink()
    assert found(tmp_path) == (shards[:-1], [shards[-1]])


@pytest.mark.parametrize(
    "shard", ["../out.safetensors", "{}/out.safetensors", "sub/../../out.safetensors", "link/out.safetensors"]
)
def test_an_index_does_not_lead_out_of_the_folder(shard, tmp_path):
    make(tmp_path, ["out.safetensors", "model/sub/file"])
    folder = tmp_path / "model"
    (folder / "link").symlink_to(tmp_path)
    make(folder, [], [shard.format(tmp_path)])
    assert found(folder) == ([], [shard.format(tmp_path)])
    assert FolderListing(folder).names == [INDEX]


def test_a_shard_in_a_subfolder_may_be_a_link_as_in_the_hub_s_cache(tmp_path):
    make(tmp_path, ["blob", "snapshot/sub/file"])
    folder = make(tmp_path / "snapshot", [], ["sub/a.safetensors"])
    (folder / "sub" / "a.safetensors").symlink_to("../../blob")
    assert found(folder) == (["sub/a.safetensors"], [])
