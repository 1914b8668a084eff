"""Generates starts of vLLM with odd configurations, flags and variables, close to those that are refused.

Most starts have only one odd value. If there were two, vLLM might refuse the start for either of them. The
values are in `odd_values`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from startup.vllm_words.facts import ARCHITECTURES, MODEL_TYPES, FlagFact, VllmFacts
from tests.vllm_engine.preflight import odd_values as odd
from tests.vllm_engine.preflight.start_folders import MODEL


@dataclass
class GeneratedStart:
    """A model's folder, and a command line without the model."""

    config: dict[str, Any]
    words: list[str] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    """Name -> content of further files in the folder. Files with empty content are not written."""

    def write(self, folder: Path) -> dict[str, Any]:
        """Writes the model's folder. Returns the start as a question for the scripts."""
        folder.mkdir()
        for name in (name for name in odd.TOKENIZER if (MODEL / name).exists()):
            (folder / name).symlink_to((MODEL / name).resolve())
        (folder / "model.safetensors").write_bytes(odd.WEIGHTS)
        (folder / "config.json").write_text(json.dumps(self.config))
        for name, content in self.files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).unlink(missing_ok=True)
            if content:
                (folder / name).write_bytes(content)
        words = [word.replace("{folder}", str(folder)) for word in self.words]
        return {"words": [str(folder), *words], "variables": self.variables}


def generate(seed: int, number: int, facts: VllmFacts) -> list[GeneratedStart]:
    """Returns generated starts, equally many of each kind.

    Args:
        seed: the same seed gives the same starts for the same version of vLLM.
        number: the number of starts.
        facts: the facts of the vLLM that runs the starts.
    """
    kinds = _Generator(Random(seed), facts).kinds()
    return [kinds[index % len(kinds)]() for index in range(number)]


class _Generator:
    def __init__(self, random: Random, facts: VllmFacts) -> None:
        self._random = random
        self._names = facts.names
        self._variables = facts.variables
        self._flags = [flag for flag in facts.flags if flag.name not in odd.NOT_GENERATED]

    def kinds(self) -> list[Callable[[], GeneratedStart]]:
        """A method for each kind of start. Kinds with most values are in the list twice."""
        return [
            self._length, self._length, self._rope, self._heads, self._quantization, self._type, self._architecture,
            self._field, self._file, self._weights, self._flag, self._flag, self._flags_of_a_rule, self._spelling,
            self._name, self._settings, self._variable,
        ]  # fmt: skip

    def _pick(self, *values: Any) -> Any:
        return self._random.choice(values)

    def _is(self, share: float) -> bool:
        return self._random.random() < share

    def _family(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(json.dumps(self._pick(*odd.FAMILIES)))
        return found

    def _text_config(self, config: dict[str, Any]) -> dict[str, Any]:
        """The object that has the language model's fields, or sometimes the other object."""
        found: dict[str, Any] = config.get("text_config", config) if self._is(0.7) else config
        return found

    def _length(self) -> GeneratedStart:
        """A length above or below the value of a key."""
        config = self._family()
        for key in filter(config.__contains__, ("max_position_embeddings", "n_positions", "seq_length")):
            if self._is(0.3):
                del config[key]
        if self._is(0.5):
            config[self._pick(*odd.LENGTH_KEYS)] = self._pick(256, 1024, 2048, 4096, 0, None, "2048", 1024.0, True)
        start = GeneratedStart(config, ["--max-model-len", self._any_length()])
        if self._is(0.2):
            start.variables["VLLM_ALLOW_LONG_MAX_MODEL_LEN"] = self._pick(*odd.BOOLEANS)
        if self._is(0.15):
            content = {"max_seq_length": 9000, "do_lower_case": False, "model_max_length": self._pick(100, 10**30)}
            start.files[self._pick("sentence_bert_config.json", "tokenizer_config.json")] = odd.as_json(content)
        if self._is(0.3):
            start.words += self._pick(*odd.LENGTH_FLAGS)
        return start

    def _any_length(self) -> str:
        length = self._pick(256, 448, 512, 1024, 2048, 4096, 8192)
        return str(self._pick(length, length, length + 1, length - 1, length * 4, length * 8, 0, -1, -2, "1k", "auto"))

    def _rope(self) -> GeneratedStart:
        """RoPE parameters in the old and in the new form, flat and for each kind of layer."""
        config, kind = self._family(), self._pick(*odd.ROPES)
        rope = {self._pick("rope_type", "type"): kind} if self._is(0.9) else {}
        rope |= {"factor": self._pick(2.0, 4, 8.0, None, "4", 0.5)} if self._is(0.85) else {}
        rope |= {"original_max_position_embeddings": self._pick(256, 512, 2048)} if self._is(0.4) else {}
        rope |= odd.ROPE_PARAMETERS.get(kind, {})
        key = self._pick("rope_scaling", "rope_parameters")
        if key == "rope_parameters":
            rope["rope_theta"] = 10000.0
        if self._is(0.15):
            rope = {"full_attention": rope, "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}
        self._text_config(config)[key] = rope if self._is(0.97) else None
        return GeneratedStart(config, ["--max-model-len", self._any_length()])

    def _heads(self) -> GeneratedStart:
        config = self._family()
        key = self._pick("num_attention_heads", "n_head", "num_heads", "n_heads", "num_key_value_heads")
        self._text_config(config)[key] = self._pick(1, 2, 3, 4, 6, 8, 0, None, "4")
        return GeneratedStart(config, [self._pick("-tp", "-tp", "-pp", "-dp"), str(self._pick(1, 2, 3, 4, 8, 64))])

    def _quantization(self) -> GeneratedStart:
        """The flag for quantization, and the checkpoint's settings in config.json and in other files."""
        start = GeneratedStart(self._family())
        methods = (*self._names["--quantization"], *odd.FURTHER_METHODS)
        if self._is(0.8):
            content = {"quant_method": self._pick(*methods)} if self._is(0.9) else {}
            content |= self._pick(*odd.QUANTIZATIONS) if self._is(0.7) else {}
            key = self._pick("quantization_config", "quantization_config", "compression_config")
            self._text_config(start.config)[key] = content if self._is(0.95) else self._pick({}, None, "gptq")
        if self._is(0.6):
            start.words = ["--quantization", self._pick(*methods, "GPTQ", "Awq", "None", "")]
        start.words += ["--allow-deprecated-quantization"] if self._is(0.2) else []
        start.words += ["--load-format", self._pick("dummy", "auto", "safetensors")] if self._is(0.3) else []
        if self._is(0.2):
            name = self._pick("quantize_config.json", "quant_config.json", "hf_quant_config.json")
            start.files[name] = odd.as_json(self._pick(*odd.QUANTIZATIONS))
        return start

    def _type(self) -> GeneratedStart:
        """Any model_type with any architecture, with or without code."""
        config = self._family()
        if self._is(0.7):
            own = self._pick(*odd.FAMILIES)["model_type"]
            config["model_type"] = self._pick(self._pick(*self._names[MODEL_TYPES[1]]), own, "own_type", "Llama", "")
        if self._is(0.5):
            config["architectures"] = [self._any_architecture()]
        if self._is(0.5):
            config["auto_map"] = self._pick(odd.CODE, {"AutoConfig": "own_code.OwnConfig"}, {}, None)
        start = GeneratedStart(config, self._pick([], [], ["--trust-remote-code"]))
        if self._is(0.3):
            start.files["own_code.py"] = b"from transformers import LlamaConfig as OwnConfig"
        return start

    def _architecture(self) -> GeneratedStart:
        config = self._family()
        names = [self._any_architecture() for _ in range(self._pick(1, 1, 1, 2))]
        config["architectures"] = self._pick(names, names, names, [], None, names[0])
        return GeneratedStart(config, self._pick([], [], [], *odd.ARCHITECTURE_FLAGS))

    def _any_architecture(self) -> str:
        known = self._pick(*self._names[ARCHITECTURES])
        return str(self._pick(known, f"{known}X", *odd.ARCHITECTURES))

    def _field(self) -> GeneratedStart:
        """A field that is missing or has a wrong type."""
        config = self._family()
        owner = self._text_config(config)
        key = self._pick(*owner, "dtype", "torch_dtype", "sliding_window", "tie_word_embeddings", "auto_map")
        owner[key] = self._pick(None, 0, -1, 1.5, "x", "1", [], {}, True, "float16", "bf16", "auto", [1, 2])
        if self._is(0.3):
            del owner[key]
        return GeneratedStart(config, self._pick([], ["--dtype", "half"], ["--max-model-len", "512"]))

    def _file(self) -> GeneratedStart:
        """Missing or odd files in the folder, and files that flags name."""
        start, name = GeneratedStart(self._family()), self._pick(*odd.FILES)
        start.files[name] = self._pick(
            b"", b"", b"{}", b"[]", b"{", b"null", b'{"a": 1}', b"{{ a }}", b"\xef\xbb\xbf{}"
        )
        if self._is(0.3):
            start.files |= {"tokenizer.json": b"", "tokenizer_config.json": b""}
        if self._is(0.5):
            path = self._pick(f"{{folder}}/{name}", "missing", "{}", "", "auto", "vllm")
            start.words = [self._pick(*odd.FILE_FLAGS), path]
        return start

    def _weights(self) -> GeneratedStart:
        """Weights that are missing or broken, or more weights than vLLM reads."""
        start = GeneratedStart(self._family(), words=self._pick([], *odd.LOADS))
        for _ in range(self._pick(1, 1, 2, 3)):
            start.files[self._pick(*odd.WEIGHT_NAMES)] = self._pick(b"", *odd.ALL_WEIGHTS)
        if self._is(0.4):
            start.files["model.safetensors"] = b""
        if self._is(0.4):
            index = odd.as_json({"weight_map": {name: self._pick(*odd.WEIGHT_NAMES) for name in "ab"}})
            start.files["model.safetensors.index.json"] = self._pick(index, index, b"{", b"{}", b"[]")
        return start

    def _flag(self) -> GeneratedStart:
        return GeneratedStart(odd.PLAIN, self._words_of(self._pick(*self._flags)))

    def _flags_of_a_rule(self) -> GeneratedStart:
        """Two flags. One of them may limit, need or exclude the other one."""
        names = self._random.sample(odd.LIMITED, 2)
        words = [word for flag in self._flags if flag.name in names for word in self._words_of(flag)]
        return GeneratedStart(odd.PLAIN, words)

    def _words_of(self, flag: FlagFact) -> list[str]:
        name = self._pick(*flag.names)
        if flag.nargs == 0:
            return [self._pick(name, self._pick(name, *flag.opposites))]
        texts = [*map(str, flag.choices or ()), *odd.TEXTS]
        value = self._pick(self._pick(*texts), self._pick(*odd.NUMBERS), self._pick(*texts).upper())
        return [f"{name}={value}"] if self._is(0.5) and name.startswith("--") else [name, value]

    def _spelling(self) -> GeneratedStart:
        """Flags that are abbreviated, given twice, or have underscores or keys."""
        flag = self._pick(*self._flags)
        words = self._words_of(flag)
        if flag.fields and self._is(0.7):
            field = self._pick(*flag.fields)
            key = self._pick(field, "x", "pass_config.fuse_norm_quant", f"{field}+")
            choices = flag.fields.get(key) or ()
            name, value = f"{self._pick(*flag.names)}.{key}", str(self._pick(*odd.TEXTS, *odd.NUMBERS, *choices))
            return GeneratedStart(odd.PLAIN, self._pick([f"{name}={value}"], [name, value], [name]))
        name = words[0]
        words[0] = self._pick(name[: -self._pick(1, 2, 4)], name.replace("-", "_").replace("__", "--", 1), name)
        more = self._pick([], words, self._words_of(flag), [f"-O{self._pick(0, 3, 4, '=1', '.mode=3')}"], ["x"])
        return GeneratedStart(odd.PLAIN, words + more)

    def _name(self) -> GeneratedStart:
        """Names of registries in another case, cut off, or invalid."""
        flag = self._pick(*odd.NAMED)
        name = self._pick("x", *self._names.get(flag, ()))
        value = self._pick(name, name.upper(), name.lower(), name[:-1], "auto", "AUTO", "None", "none", "", f" {name}")
        has_tools = flag == "--tool-call-parser" and self._is(0.8)
        return GeneratedStart(odd.PLAIN, [flag, value, *(["--enable-auto-tool-choice"] if has_tools else [])])

    def _settings(self) -> GeneratedStart:
        """A file for --config, with values of any type."""
        settings = {}
        for flag in self._random.sample(self._flags, self._pick(1, 1, 2)):
            name = flag.name[2:]
            key = self._pick(name, name.replace("-", "_"), f"no-{name}")
            settings[key] = self._pick(*odd.YAML_VALUES, *(flag.choices or ()))
        text = self._pick(*[odd.as_json(settings)] * 5, b"", b"a", b"[1]", b"a: [", b"model: x")
        words = self._pick(["--config", "{folder}/settings.yaml"], ["--config={folder}/settings.yaml"])
        more = self._words_of(self._pick(*self._flags)) if self._is(0.3) else []
        return GeneratedStart(odd.PLAIN, words + more, files={"settings.yaml": text})

    def _variable(self) -> GeneratedStart:
        fact = self._pick(*self._variables)
        value = self._pick(*(fact.choices or ()), *odd.TEXTS, *odd.NUMBERS, *odd.BOOLEANS)
        return GeneratedStart(odd.PLAIN, variables={fact.name: self._pick(value, value.upper())})
