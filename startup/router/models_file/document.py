"""A YAML document with the line of each key, read with limits, and the faults that are found in it.

The parser's events are turned into values here: PyYAML's own composer recurses, so that a document of many
nested brackets ends the process, and its mappings keep the last of equal keys without a word.
"""

import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

from envs.redaction import MASK, hide_in_command, is_secret_name
from startup.router.model_entry import Fault, Notice

Key: TypeAlias = str | int
KeyPath: TypeAlias = tuple[Key, ...]

MAX_BYTES: Final = 1 << 20
_MAX_VALUES: Final = 100_000
"""Values of a document, those of aliases counted each time."""
_MAX_DEPTH: Final = 40
_MAX_SHOWN: Final = 60
"""Characters of a value in a message."""

_TAG: Final = "tag:yaml.org,2002:"
_COLLECTIONS: Final = (None, "!", f"{_TAG}map", f"{_TAG}seq")


class DocumentError(Exception):
    """The file cannot be read, or is not YAML."""

    def __init__(self, text: str, line: int | None = None) -> None:
        super().__init__(text)
        self.line = line


@dataclass
class Node:
    """A value of the document."""

    value: Any
    """A scalar, a list of nodes, or a dictionary of nodes."""
    line: int
    key_lines: dict[str, int] = field(default_factory=dict)
    """Of a mapping."""
    num_values: int = 1

    def plain(self) -> Any:
        """The value without lines."""
        match self.value:
            case dict():
                return {key: node.plain() for key, node in self.value.items()}
            case list():
                return [node.plain() for node in self.value]
        return self.value

    def line_of(self, path: KeyPath) -> int:
        """The line of the key, or of the nearest one above it that the document has."""
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
    """Collects what is wrong with a document."""

    def __init__(self, file: str, root: Node | None = None) -> None:
        self.file = file
        self.root = root
        self.faults: list[Fault] = []
        self.fault_paths: set[KeyPath] = set()
        self.notices: list[Notice] = []

    def fault(self, path: KeyPath, text: str) -> None:
        """Something that must be changed."""
        self.fault_paths.add(path)
        self.faults.append(Fault(text, self.line_of(path), spell_path(path), self.file))

    def notice(self, path: KeyPath, text: str) -> None:
        """Something that has no effect here, or another one than elsewhere."""
        self.notices.append(Notice(text, self.line_of(path), spell_path(path), self.file))

    def line_of(self, path: KeyPath) -> int | None:
        """The line of a key."""
        return self.root.line_of(path) if self.root is not None else None


def spell_path(path: Iterable[Key]) -> str:
    """`models.qwen.aliases[0]`."""
    parts = [f"[{key}]" if isinstance(key, int) else f".{key if key.isprintable() else repr(key)}" for key in path]
    return "".join(parts).removeprefix(".")


def show(value: object, path: KeyPath = ()) -> str:
    """A value in a message, short and without secrets."""
    if any(is_secret_name(str(key)) or key == "apiKeys" for key in path):
        return MASK
    text = hide_in_command(value) if isinstance(value, str) else str(value)
    text = text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."
    if isinstance(value, str):
        return repr(text)
    names: dict[object, str] = {True: "true", False: "false"}
    return names.get(value, text) if isinstance(value, bool) else "nothing" if value is None else text


def read_text(path: Path) -> str:
    """The text of the file; raises DocumentError."""
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
    """The document's root, None if it is empty; equal keys are faults.

    Raises:
        DocumentError: the text is not YAML, or nothing can be made of it.
    """
    import yaml

    try:
        return _Builder(findings).build(yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except yaml.MarkedYAMLError as err:
        mark = err.problem_mark or err.context_mark
        line = None if mark is None else mark.line + 1
        raise DocumentError(f"is not YAML: {err.problem or err.context}", line) from err
    except yaml.reader.ReaderError as err:
        line = text.count("\n", 0, err.position) + 1
        raise DocumentError(f"is not YAML: {err.reason}", line) from err
    except yaml.YAMLError as err:
        raise DocumentError(f"is not YAML: {err}") from err


@dataclass
class _Open:
    """A collection whose end was not read yet."""

    node: Node
    anchor: str | None
    key: tuple[str, int, bool] | None = None
    """Of a mapping: the key whose value follows, its line, and whether it merges."""
    merged: list[Node] = field(default_factory=list)


class _Builder:
    def __init__(self, findings: Findings) -> None:
        import yaml

        self._yaml = yaml
        self._scalars = yaml.SafeLoader("")
        self._findings = findings
        self._anchors: dict[str, Node] = {}
        self._stack: list[_Open] = []
        self._root: Node | None = None
        self._num_documents = 0

    def build(self, events: Iterable[Any]) -> Node | None:
        yaml = self._yaml
        for event in events:
            line = event.start_mark.line + 1
            if isinstance(event, yaml.DocumentStartEvent):
                self._num_documents += 1
                if self._num_documents > 1:
                    raise DocumentError("has several documents: remove the line ---", line)
            elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
                self._open(event, line)
            elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
                self._close()
            elif isinstance(event, yaml.ScalarEvent):
                self._add_scalar(event, line)
            elif isinstance(event, yaml.AliasEvent):
                if event.anchor not in self._anchors:
                    raise DocumentError(f"the alias *{event.anchor} has no complete anchor before it", line)
                self._add(self._anchors[event.anchor], line)
        return self._root

    def _open(self, event: Any, line: int) -> None:
        if event.tag not in _COLLECTIONS:
            raise DocumentError(f"the tag {event.tag} is not supported: remove it", line)
        if len(self._stack) == _MAX_DEPTH:
            raise DocumentError(f"is nested more than {_MAX_DEPTH} levels deep", line)
        is_mapping = isinstance(event, self._yaml.MappingStartEvent)
        self._stack.append(_Open(Node({} if is_mapping else [], line), event.anchor))

    def _close(self) -> None:
        closed = self._stack.pop()
        for other in closed.merged:  # the first one wins, and what the mapping itself has
            for key, node in other.value.items():
                if key not in closed.node.value:
                    closed.node.value[key] = node
                    closed.node.key_lines[key] = other.key_lines[key]
                    closed.node.num_values += node.num_values
        if closed.anchor:
            self._anchors[closed.anchor] = closed.node
        self._add(closed.node, closed.node.line)

    def _add_scalar(self, event: Any, line: int) -> None:
        tag = event.tag
        if tag in (None, "!"):
            tag = self._scalars.resolve(  # type: ignore[no-untyped-call]
                self._yaml.ScalarNode, event.value, event.implicit
            )
        is_key = bool(self._stack) and isinstance(self._stack[-1].node.value, dict) and self._stack[-1].key is None
        if is_key:
            self._set_key(event.value, line, is_merge=tag == f"{_TAG}merge")
            return
        node = self._yaml.ScalarNode(tag, event.value, event.start_mark, event.end_mark)
        try:
            value = self._scalars.construct_object(node)
        except ValueError as err:
            raise DocumentError(f"{show(event.value)} is no value: {err}; put a text in quotes", line) from err
        scalar = Node(value, line)
        if event.anchor:
            self._anchors[event.anchor] = scalar
        self._add(scalar, line)

    def _set_key(self, text: str, line: int, *, is_merge: bool) -> None:
        """A key is what is written: `no: ...` names a model `no`."""
        opened = self._stack[-1]
        if not is_merge and text in opened.node.value:
            first = opened.node.key_lines[text]
            place = tuple(each.key[0] for each in self._stack if each.key is not None)
            text_of_fault = f"is given twice, first in line {first}: remove one of them"
            self._findings.faults.append(Fault(text_of_fault, line, spell_path((*place, text)), self._findings.file))
        opened.key = (text, line, is_merge)

    def _add(self, node: Node, line: int) -> None:
        if not self._stack:
            self._root = node
            return
        opened = self._stack[-1]
        opened.node.num_values += node.num_values
        if opened.node.num_values > _MAX_VALUES:
            raise DocumentError(f"has more than {_MAX_VALUES} values, those of its aliases included", line)
        if isinstance(opened.node.value, list):
            opened.node.value.append(node)
            return
        if opened.key is None:
            raise DocumentError("a key must be a text", line)
        key, key_line, is_merge = opened.key
        opened.key = None
        if is_merge:
            opened.merged += _mappings_of(node, key_line)
        else:
            opened.node.value[key] = node
            opened.node.key_lines[key] = key_line


def _mappings_of(node: Node, line: int) -> Sequence[Node]:
    """What `<<` merges."""
    nodes = node.value if isinstance(node.value, list) else [node]
    if not all(isinstance(each.value, dict) for each in nodes):
        raise DocumentError("<< must be followed by mappings such as *defaults", line)
    return list(nodes)
