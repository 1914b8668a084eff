"""Generates starts of vLLM near the borders of what its preflight refuses: files, flags, settings.

Most have one oddity, since vLLM refuses a start with two for either. The values are those of `odd_values`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from startup.vllm.facts import FlagFact, VllmFacts
from tests.vllm_engine.preflight import odd_values as odd
from tests.vllm_engine.preflight.start_folders import MODEL


@dataclass
class GeneratedStart:
    """A model's folder, and a command line without the model."""

    config: dict[str, Any]
    words: list[str] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    """Further files of the folder; an empty one is missing."""

    def write(self, folder: Path) -> dict[str, Any]:
        """Writes the folder; the start as a question for the scripts."""
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
    """Starts of all kinds in equal shares.

    Args:
        seed: the same one gives the same starts for the same version of vLLM.
        number: of starts.
        facts: of the vLLM that is asked.
    """
    kinds = _Generator(Random(seed), facts).kinds()
    return [kinds[index % len(kinds)]() for index in range(number)]


class _Generator:
    def __init__(self, random: Random, facts: VllmFacts) -> None:
        self._random = random
        self._flags = [flag for flag in facts.flags if flag.name not in odd.NOT_GENERATED]

    def kinds(self) -> list[Callable[[], GeneratedStart]]:
        """A method for each kind of start; twice for what has most values."""
        return [self._file, self._weights, self._flag, self._flag, self._spelling, self._settings]

    def _pick(self, *values: Any) -> Any:
        return self._random.choice(values)

    def _is(self, share: float) -> bool:
        return self._random.random() < share

    def _file(self) -> GeneratedStart:
        """Files of the folder that are missing or odd, and files that flags name."""
        start, name = GeneratedStart(odd.PLAIN), self._pick(*odd.FILES)
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
        """Weights that are missing or broken, and more of them than vLLM reads."""
        start = GeneratedStart(odd.PLAIN, words=self._pick([], *odd.LOADS))
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

    def _words_of(self, flag: FlagFact) -> list[str]:
        name = self._pick(*flag.names)
        if flag.nargs == 0:
            return [self._pick(name, self._pick(name, *flag.opposites))]
        texts = [*map(str, flag.choices or ()), *odd.TEXTS]
        value = self._pick(self._pick(*texts), self._pick(*odd.NUMBERS), self._pick(*texts).upper())
        return [f"{name}={value}"] if self._is(0.5) and name.startswith("--") else [name, value]

    def _spelling(self) -> GeneratedStart:
        """Flags that are cut off, with underscores, with keys, or given twice."""
        flag = self._pick(*self._flags)
        words = self._words_of(flag)
        name = words[0]
        words[0] = self._pick(name[: -self._pick(1, 2, 4)], name.replace("-", "_").replace("__", "--", 1), name)
        more = self._pick([], words, self._words_of(flag), [f"-O{self._pick(0, 3, 4, '=1', '.mode=3')}"], ["x"])
        return GeneratedStart(odd.PLAIN, words + more)

    def _settings(self) -> GeneratedStart:
        """The file of --config, with values of any type."""
        settings = {}
        for flag in self._random.sample(self._flags, self._pick(1, 1, 2)):
            name = flag.name[2:]
            key = self._pick(name, name.replace("-", "_"), f"no-{name}")
            settings[key] = self._pick(*odd.YAML_VALUES, *(flag.choices or ()))
        text = self._pick(*[odd.as_json(settings)] * 5, b"", b"a", b"[1]", b"a: [", b"model: x")
        words = self._pick(["--config", "{folder}/settings.yaml"], ["--config={folder}/settings.yaml"])
        more = self._words_of(self._pick(*self._flags)) if self._is(0.3) else []
        return GeneratedStart(odd.PLAIN, words + more, files={"settings.yaml": text})
