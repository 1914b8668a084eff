"""Which files of a repository are downloaded, by their names."""

import pytest

from startup.model.wanted_files import WantedFiles


@pytest.mark.parametrize(
    ("names", "weights"),
    [
        (["model.safetensors", "model.fp16.safetensors"], ["model.safetensors"]),
        (
            ["model-1-of-2.safetensors", "model-2-of-2.safetensors", "consolidated.safetensors"],
            ["model-1-of-2.safetensors", "model-2-of-2.safetensors"],
        ),
        (["weights.safetensors", "pytorch_model.bin"], ["pytorch_model.bin"]),
        (["weights.safetensors", "notes.bin"], ["weights.safetensors"]),
        (["pytorch_model.bin", "training_args.bin", "tf_model.h5"], ["pytorch_model.bin"]),
        (["tf_model.h5"], []),
    ],
)
def test_weights_are_downloaded_in_one_format(names, weights):
    assert WantedFiles(role="model").choose([*names, "config.json"]) == ["config.json", *weights]


def test_all_modules_of_an_embedder_are_downloaded():
    wanted = [
        "config.json",
        "modules.json",
        "1_Pooling/config.json",
        "2_Dense/config.json",
        "model.safetensors",
        "2_Dense/model.safetensors",
    ]
    others = ["2_Dense/pytorch_model.bin", "onnx/model.onnx", "onnx/config.json", "1_Pooling/deep/config.json"]
    assert WantedFiles(role="model").choose([*wanted, *others]) == wanted
    assert WantedFiles(role="tokenizer").choose([*wanted, *others]) == ["config.json", "modules.json"]
