"""Reads a YAML document within limits, notes the line of each key, and collects the document's faults."""

import math
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

import yaml

from envs.redaction import MASK, hide_in_command, is_secret_name
from router.model_entry import Fault, Notice

Key: TypeAlias = str | int
KeyPath: TypeAlias = tuple[Key, ...]

MAX_BYTES: Final = 1 << 20
_MAX_VALUES: Final = 100_000
"""The most values of a document. If an alias is used several times, its values count each time."""
_MAX_DEPTH: Final = 40
_MAX_SHOWN: Final = 60
"""The most characters of a value that a message shows."""

_TAG: Final = "tag:yaml.org,2002:"
_COLLECTIONS: Final = (f"{_TAG}map", f"{_TAG}seq")


_HINTS: Final = {
    "sequence entries are not allowed here": ": leave out the dash, or begin the list in a new line",
    "mapping values are not allowed here": ": put a text with a colon and a blank in quotes",
    "found character '\\t'": ": indent with blanks",
}
"""A part of a message of YAML's parser -> what to do."""


class DocumentError(Exception):
    """The file cannot be read, or its text is not YAML."""

    def __init__(self, text: str, line: int | None = None) -> None:
        super().__init__(text)
        self.line = line


@dataclass
class Node:
    """A value of the document, and its line."""

    value: Any
    """A scalar, a list of nodes, or a dictionary of nodes."""
    line: int
    key_lines: dict[str, int] = field(default_factory=dict)
    """Key -> its line, for a mapping."""
    text: str | None = None
    """The text of a scalar as the file has it. None for lists and mappings."""
    is_quoted: bool = False

    def plain(self) -> Any:
        """The value as plain Python objects, without its lines."""
        match self.value:
            case dict():
                return {key: node.plain() for key, node in self.value.items()}
            case list():
                return [node.plain() for node in self.value]
        return self.value

    def line_of(self, path: KeyPath) -> int:
        """The line of the key with this path. If it is missing, the line of the nearest key above it."""
        node, line = self, self.line
        for key in path:
            match node.value:
                case dict() if key in node.value:
                    line = node.key_lines[str(key)]
                    node = node.value[key]
                case list() if isinstance(key, int) and key < len(node.value):
                    node = node.value[key]
                    line = node.line
                case dict() if key in node.key_lines:
                    return node.key_lines[str(key)]
                case _:
                    break
        return line


class Findings:
    """The faults and notices that are found in a document."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.root: Node | None = None
        self.faults: list[Fault] = []
        self.fault_paths: set[KeyPath] = set()
        self._noticed: dict[tuple[Key, str], list[KeyPath]] = {}
        """(key, text) of a notice -> the places that the notice concerns."""
        self.is_lenient = False
        """Whether the file is for llama-swap. In such a file, unknown keys are notices instead of faults."""
        self.anchored: set[str] = set()
        """Top-level keys whose values other keys use through YAML anchors."""

    def fault(self, path: KeyPath, text: str) -> None:
        """Reports a value that the user must change."""
        self.fault_paths.add(path)
        fault = Fault(text, self.line_of(path), spell_path(path), self.file)
        self.faults.append(fault)

    def notice(self, path: KeyPath, text: str) -> None:
        """Reports a key that has no effect, or not the usual effect. Equal notices are merged."""
        self._noticed.setdefault((path[-1], text), []).append(path)

    @property
    def notices(self) -> tuple[Notice, ...]:
        """The notices in the order in which the file has their keys."""
        found = []
        for (_, text), paths in self._noticed.items():
            first = min(paths, key=lambda path: self.line_of(path) or 0)
            more = f" (in {len(paths)} places)" if len(paths) > 1 else ""
            found.append(Notice(text + more, self.line_of(first), spell_path(first), self.file))
        return tuple(sorted(found, key=lambda notice: notice.line or 0))

    def line_of(self, path: KeyPath) -> int | None:
        return self.root.line_of(path) if self.root is not None else None


def spell_path(path: Iterable[Key]) -> str:
    """Writes a path as text, such as `models.qwen.aliases[0]`."""
    return "".join(map(_spell_key, path)).removeprefix(".")


def _spell_key(key: Key) -> str:
    if isinstance(key, int):
        return f"[{key}]"
    return f".{key}" if key.isprintable() else f".{key!r}"


def show(value: object, path: KeyPath = ()) -> str:
    """The text of a value in a message. It is shortened, and contains no secrets."""
    if any(is_secret_name(str(key)) or key == "apiKeys" for key in path):
        return MASK
    text = hide_in_command(value) if isinstance(value, str) else str(value)
    text = text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."
    if isinstance(value, str):
        return repr(text)
    if isinstance(value, bool):
        return text.lower()
    return "nothing" if value is None else text


def read_text(path: Path) -> str:
    """The text of the file. Raises DocumentError."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
            raise DocumentError(f"is {kind}: name a YAML file")
        if status.st_size > MAX_BYTES:
            raise DocumentError(f"has {status.st_size} bytes: at most {MAX_BYTES} are read")
        content = path.read_bytes()
    except (OSError, ValueError) as err:
        raise DocumentError(f"cannot be read: {getattr(err, 'strerror', None) or err}") from err
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        line = content.count(b"\n", 0, err.start) + 1
        raise DocumentError(f"is not UTF-8: byte {content[err.start]:#04x}", line) from err


def parse(text: str, findings: Findings) -> Node | None:
    """The root of the document. None if the document is empty. Repeated keys are reported as faults.

    Raises:
        DocumentError: the text is not YAML, is nested too deeply, or has too many values.
    """
    try:
        root = yaml.compose(text, Loader=_Loader)  # libyaml's loader would overflow the stack here
        return None if root is None else _Reader(findings).read(root, ())
    except RecursionError as err:
        raise DocumentError("is nested too deeply") from err
    except yaml.MarkedYAMLError as err:
        mark = err.problem_mark or err.context_mark
        line = None if mark is None else mark.line + 1
        what = ", ".join(part for part in (err.context, err.problem) if part)
        hint = next((hint for part, hint in _HINTS.items() if part in what), "")
        raise DocumentError(f"is not YAML: {what}{hint}", line) from err
    except yaml.reader.ReaderError as err:
        line = text.count("\n", 0, err.position) + 1
        raise DocumentError(f"is not YAML: {err.reason}", line) from err
    except yaml.YAMLError as err:
        raise DocumentError(f"is not YAML: {err}") from err


class _Loader(yaml.SafeLoader):
    """PyYAML's loader with a change: it accepts the `?` in `{top_p?: 0.5}`, as YAML 1.2 requires."""

    def scan_plain(self) -> Any:
        if self.flow_level:
            vars(self)["peek"] = self._peek_of_plain
        try:
            return super().scan_plain()
        finally:
            vars(self).pop("peek", None)

    def _peek_of_plain(self, index: int = 0) -> Any:
        found = super().peek(index)
        return "x" if found == "?" and super().peek(index + 1).strip("\0 \t\r\n") else found


def value_of(text: str) -> Any:
    """The value that YAML reads from an unquoted text. The text itself if it is not valid YAML."""
    loader: Any = yaml.SafeLoader("")
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))
    try:
        return _construct(loader, yaml.ScalarNode(tag, text))
    except (ValueError, yaml.YAMLError):
        return text


def _construct(loader: Any, node: yaml.ScalarNode) -> Any:
    """The scalar's value. The text of a date, and of everything else that JSON does not have."""
    value = loader.construct_object(node)
    if isinstance(value, str | int | None):
        return value
    is_number = isinstance(value, float) and math.isfinite(value)
    return value if is_number else node.value


class _Reader:
    """Converts PyYAML's nodes to ours. The values of an alias count at each use."""

    def __init__(self, findings: Findings) -> None:
        self._scalars = yaml.SafeLoader("")
        self._findings = findings
        self._num_values = 0
        self._top_keys: dict[int, str] = {}
        """The id of a YAML node -> the top-level key below which the node was found first."""

    def read(self, node: Any, path: KeyPath) -> Node:
        line = node.start_mark.line + 1
        self._num_values += 1
        if self._num_values > _MAX_VALUES:
            raise DocumentError(f"has more than {_MAX_VALUES} values, those of its aliases included", line)
        if len(path) > _MAX_DEPTH:
            raise DocumentError(f"is nested more than {_MAX_DEPTH} levels deep", line)
        top_key = str(path[0]) if path else ""
        if self._top_keys.setdefault(id(node), top_key) != top_key:
            self._findings.anchored.add(self._top_keys[id(node)])
        if isinstance(node, yaml.ScalarNode):
            value = self._read_scalar(node, line)
            return Node(value, line, text=node.value, is_quoted=node.style is not None)
        if node.tag not in _COLLECTIONS:
            raise DocumentError(f"the tag {node.tag} is not supported: remove it", line)
        if isinstance(node, yaml.SequenceNode):
            items = [self.read(each, (*path, index)) for index, each in enumerate(node.value)]
            return Node(items, line)
        return self._read_mapping(node, path, line)

    def _read_scalar(self, node: Any, line: int) -> Any:
        try:
            return _construct(self._scalars, node)
        except ValueError as err:
            raise DocumentError(f"{show(node.value)} is no value: {err}. Put a text in quotes", line) from err

    def _read_mapping(self, node: Any, path: KeyPath, line: int) -> Node:
        """Reads all keys as strings. For example, the key `no` is a model's name, not the value false."""
        read = Node({}, line)
        merged: list[Node] = []
        for key, value in node.value:
            key_line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise DocumentError("a key must be a text", key_line)
            child = self.read(value, (*path, key.value))
            if key.tag == f"{_TAG}merge":
                merged += _mappings_of(child, key_line)
                continue
            if key.value in read.value:
                text = f"is given twice, first in line {read.key_lines[key.value]}: {_remedy(read, key.value, path)}"
                place = spell_path((*path, key.value))
                self._findings.faults.append(Fault(text, key_line, place, self._findings.file))
            read.value[key.value] = child
            read.key_lines[key.value] = key_line
        for other in merged:  # the mapping's own keys win over merged ones, earlier merged mappings over later ones
            for name, child in other.value.items():
                if name not in read.value:
                    read.value[name] = child
                    read.key_lines[name] = other.key_lines[name]
        return read


def _remedy(read: Node, key: str, path: KeyPath) -> str:
    """What to do about a repeated key. In a model, an empty key in between may be a model's name."""
    is_in_model = len(path) == 2 and path[0] == "models"
    names = [*read.value] if is_in_model else [key]
    between = names[names.index(key) + 1 :]
    empty = [name for name in between if read.value[name].value is None]
    if not empty:
        return "remove one of them"
    last, line = empty[-1], read.key_lines[empty[-1]]
    return f"if {show(last)} in line {line} is a model, indent it like the other models, or else remove one of them"


def _mappings_of(node: Node, line: int) -> Sequence[Node]:
    """The mappings that the key `<<` merges into the mapping."""
    nodes = node.value if isinstance(node.value, list) else [node]
    if not all(isinstance(each.value, dict) for each in nodes):
        raise DocumentError("<< must be followed by mappings such as *defaults", line)
    return list(nodes)
