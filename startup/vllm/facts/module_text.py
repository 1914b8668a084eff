"""Finds definitions in the source of a module by patterns, and parses only those that are asked for.

Parsing whole files of vLLM with `ast` takes half a second. The patterns rely on vLLM's formatting: members of
a class are indented by four blanks, and an expression ends before the next line at its own indentation.
"""

import ast
import re
import textwrap
from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from typing import Final, NamedTuple

_IMPORT: Final = re.compile(r"from +(\.*[\w.]*) +import +(?:\(([^)]*)\)|([^\n(]+))")
"""Begins with a fixed text, which takes a tenth of the time of a pattern for the begin of a line."""
_IS_ASSIGNED: Final = re.compile(r" *(?::[^=\n]*)?=(?!=) *")
_TOP_LEVEL: Final = re.compile(r"\n[^\s)]")
_BLOCK: Final = 4
_COMMENT: Final = re.compile(r"#[^\n]*")
_LONG_STRING: Final = re.compile(r'"""[^"]*(?:"(?!"")[^"]*)*"""')
"""Documentation, which may contain lines that look like code."""
_MEMBER: Final = re.compile(r"^ {4}(?=[A-Za-z_@])", re.MULTILINE)
_FIELD: Final = re.compile(r"^(?!else|try|finally)[A-Za-z_]\w*\s*:")


class ImportedName(NamedTuple):
    """A name that a module imports."""

    module: str
    """Absolute; relative imports are resolved."""
    name: str


class ClassText:
    """A class: its decorators, bases, annotated fields and methods."""

    def __init__(self, name: str, decorators: str, bases: str, body: str) -> None:
        self.name = name
        self.decorators = decorators
        self.bases = [base.strip() for base in bases.split(",") if base.strip()]
        self.body = body

    @cached_property
    def _members(self) -> list[str]:
        """The source of each field, method and decorator; only the first line is not indented."""
        begins = [*(match.end() for match in _MEMBER.finditer(self.body)), len(self.body)]
        return [self.body[begin:end] for begin, end in pairwise(begins)]

    @cached_property
    def fields(self) -> list[ast.AnnAssign]:
        """The annotated assignments in the class's body, in order."""
        source = "".join(map(_dedent, filter(_FIELD.match, self._members)))
        return [node for node in parse(source) if isinstance(node, ast.AnnAssign)]

    def method(self, name: str) -> ast.FunctionDef | None:
        """A method, without its decorators."""
        pattern = re.compile(rf"(?:async )?def {name}\(")
        source = next((member for member in self._members if pattern.match(member)), "")
        return next((node for node in parse(_dedent(source)) if isinstance(node, ast.FunctionDef)), None)

    @property
    def is_dataclass(self) -> bool:
        """Whether a decorator makes it a dataclass, such as vLLM's `config`."""
        return re.search(r"@(?:\w+\.)*(?:config|dataclass)\b", self.decorators) is not None


class ModuleText:
    """The source of one module."""

    def __init__(self, name: str, text: str, *, is_package: bool) -> None:
        self.name = name
        self.text = text
        self._is_package = is_package
        self._classes: dict[str, ClassText | None] = {}

    def expression(self, name: str) -> ast.expr | None:
        """The value that a name of the module has; the last one, as after `if TYPE_CHECKING: … else: …`."""
        at_top, in_block = None, None
        for begin, column in self._lines_with(name):
            if found := _IS_ASSIGNED.match(self.text, begin + len(name)):
                at_top, in_block = (found.end(), in_block) if column == 0 else (at_top, found.end())
        if at_top is not None:
            return self._expression_at(at_top, 0)
        return None if in_block is None else self._expression_at(in_block, _BLOCK)

    def class_text(self, name: str) -> ClassText | None:
        """A class at the top level of the module."""
        if name not in self._classes:
            self._classes[name] = self._find_class(name) if f"class {name}" in self.text else None
        return self._classes[name]

    def _find_class(self, name: str) -> ClassText | None:
        text = self._without_documentation
        head = re.search(rf"\nclass {name}\b(?:\(([^)]*)\))?:", text)
        if head is None:
            return None
        begin = text.rfind("\n\n", 0, head.start() + 1) + 2
        return ClassText(name, text[begin : head.start() + 1], head[1] or "", self._until_top_level(head.end()))

    def function(self, name: str) -> ast.FunctionDef | None:
        """A function at the top level of the module."""
        nodes = parse(self.function_source(name))
        return next((node for node in nodes if isinstance(node, ast.FunctionDef)), None)

    def function_source(self, name: str) -> str:
        """The source of such a function, without documentation; empty if there is none."""
        head = re.search(rf"\n(?:async )?def {name}\(", self._without_documentation)
        return head[0][1:] + self._until_top_level(head.end()) if head is not None else ""

    @cached_property
    def imports(self) -> dict[str, ImportedName]:
        """The names that `from … import …` binds, also under `if TYPE_CHECKING`."""
        return dict(self._imported())

    @cached_property
    def star_imports(self) -> list[str]:
        """The modules all of whose names it imports; absolute."""
        return [imported.module for name, imported in self._imported() if name == "*"]

    def _imported(self) -> Iterator[tuple[str, ImportedName]]:
        for found in _IMPORT.finditer(self.text):
            if self._column(found.start()) not in (0, _BLOCK):
                continue
            module, bracketed, plain = found.groups()
            names = bracketed or plain
            for part in (_COMMENT.sub("", names) if "#" in names else names).split(","):
                original, _, alias = (word.strip() for word in part.strip().partition(" as "))
                if original:
                    yield alias or original, ImportedName(self._absolute(module), original)

    def _absolute(self, module: str) -> str:
        relative = module.lstrip(".")
        level = len(module) - len(relative)
        if not level:
            return module
        parents = self.name.split(".")
        parents = parents[: len(parents) - level + self._is_package]
        return ".".join([*parents, *filter(None, [relative])])

    def _lines_with(self, name: str) -> Iterator[tuple[int, int]]:
        """The lines that begin with a text at the top level or in a block: position of the text, column."""
        begin = self.text.find(name)
        while begin >= 0:
            if (column := self._column(begin)) in (0, _BLOCK):
                yield begin, column
            begin = self.text.find(name, begin + 1)

    def _column(self, position: int) -> int | None:
        """The column if only blanks precede it in its line, and at most a block's."""
        blanks = self.text[max(position - _BLOCK - 1, 0) : position].rpartition("\n")
        is_first = blanks[1] or position <= _BLOCK
        return len(blanks[2]) if is_first and not blanks[2].strip(" ") else None

    def _until_top_level(self, begin: int) -> str:
        """What follows until the next statement of the module, without documentation."""
        text = self._without_documentation
        end = _TOP_LEVEL.search(text, begin)
        return text[begin : end.start() + 1 if end else len(text)]

    def _expression_at(self, begin: int, column: int) -> ast.expr | None:
        end = re.compile(rf"\n {{0,{column}}}[^\s)\]}}]").search(self.text, begin)
        source = self.text[begin : end.start() + 1 if end else len(self.text)]
        try:
            return ast.parse(textwrap.dedent(source).strip(), mode="eval").body
        except SyntaxError:
            return None

    @cached_property
    def _without_documentation(self) -> str:
        """Begins with a line break, so that every line follows one."""
        return "\n" + _LONG_STRING.sub('""', self.text)


def _dedent(member: str) -> str:
    return textwrap.dedent(f"    {member}")


def parse(source: str) -> list[ast.stmt]:
    """The statements; none for what was written for a newer Python than this one."""
    try:
        return ast.parse(source).body
    except SyntaxError:
        return []
