"""Reads the pickle in which `torch.save` describes a tensor, as data.

A pickle is a program that names and calls functions. This reader implements only the instructions that
describe a tensor. For a call it records the function's name and arguments. It imports nothing and calls
nothing.
"""

import struct
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from server.renderers.embeds.stored_tensor import TensorFileError

_MARK = object()
_STOP = b"."


class Name(NamedTuple):
    """The name of a function or class, which is not imported."""

    name: str


class Call(NamedTuple):
    """A call that unpickling would make, recorded."""

    function: str
    args: tuple[Any, ...]


class Storage(NamedTuple):
    """Numbers stored outside the pickle."""

    type: str
    key: str


def read_tensor_pickle(data: bytes) -> Any:
    """The pickled value: numbers, texts and tuples, with the classes above instead of other objects.

    Raises:
        TensorFileError: the pickle has an instruction that a plain tensor does not need.
        LookupError, TypeError, ValueError: the pickle is broken.
    """
    machine = _Machine(data)
    while (instruction := machine.take(1)) != _STOP:
        step = _INSTRUCTIONS.get(instruction)
        if step is None:
            raise TensorFileError("holds more than a plain tensor: save the tensor itself, `torch.save(tensor, file)`")
        step(machine)
    return machine.pop()


class _Machine:
    """The pickle program, its stack and its memo."""

    def __init__(self, program: bytes) -> None:
        self._program = program
        self._position = 0
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def take(self, length: int) -> bytes:
        """Reads the program's next bytes."""
        taken = self._program[self._position : self._position + length]
        if len(taken) < length:
            raise ValueError("no end")
        self._position += length
        return taken

    def take_number(self, code: str) -> int:
        """Reads the next number, little endian; `code` is its type in `struct`."""
        layout = struct.Struct("<" + code)
        (number,) = layout.unpack(self.take(layout.size))
        return int(number)

    def take_text(self, length_code: str) -> str:
        return self.take(self.take_number(length_code)).decode()

    def take_long(self) -> int:
        return int.from_bytes(self.take(self.take_number("B")), "little", signed=True)

    def take_line(self) -> str:
        end = self._program.index(b"\n", self._position)
        line = self.take(end - self._position)
        self.take(1)
        return line.decode()

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def pop(self) -> Any:
        return self._stack.pop()

    def pop_tuple(self, length: int) -> tuple[Any, ...]:
        return tuple([self.pop() for _ in range(length)][::-1])

    def pop_to_mark(self) -> tuple[Any, ...]:
        taken = []
        while (value := self.pop()) is not _MARK:
            taken.append(value)
        return tuple(taken[::-1])

    def remember(self, number: int | None = None) -> None:
        self._memo[len(self._memo) if number is None else number] = self._stack[-1]

    def recall(self, number: int) -> None:
        self.push(self._memo[number])

    def call(self) -> None:
        function, args = self.pop_tuple(2)
        if not isinstance(function, Name) or not isinstance(args, tuple):
            raise TypeError("no call")
        self.push(Call(function.name, args))

    def store(self) -> None:
        kind, storage_type, key, *_ = self.pop()
        if kind != "storage" or not isinstance(storage_type, Name) or not isinstance(key, str):
            raise TypeError("no storage")
        self.push(Storage(storage_type.name, key))


_INSTRUCTIONS: Final[dict[bytes, Callable[[_Machine], object]]] = {
    b"\x80": lambda m: m.take(1),  # PROTO
    b"\x95": lambda m: m.take(8),  # FRAME
    b"N": lambda m: m.push(None),  # NONE
    b"\x88": lambda m: m.push(True),  # NEWTRUE
    b"\x89": lambda m: m.push(False),  # NEWFALSE
    b"J": lambda m: m.push(m.take_number("i")),  # BININT
    b"K": lambda m: m.push(m.take_number("B")),  # BININT1
    b"M": lambda m: m.push(m.take_number("H")),  # BININT2
    b"\x8a": lambda m: m.push(m.take_long()),  # LONG1
    b"X": lambda m: m.push(m.take_text("I")),  # BINUNICODE
    b"\x8c": lambda m: m.push(m.take_text("B")),  # SHORT_BINUNICODE
    b"(": lambda m: m.push(_MARK),  # MARK
    b")": lambda m: m.push(()),  # EMPTY_TUPLE
    b"t": lambda m: m.push(m.pop_to_mark()),  # TUPLE
    b"\x85": lambda m: m.push(m.pop_tuple(1)),  # TUPLE1
    b"\x86": lambda m: m.push(m.pop_tuple(2)),  # TUPLE2
    b"\x87": lambda m: m.push(m.pop_tuple(3)),  # TUPLE3
    b"q": lambda m: m.remember(m.take_number("B")),  # BINPUT
    b"r": lambda m: m.remember(m.take_number("I")),  # LONG_BINPUT
    b"\x94": lambda m: m.remember(),  # MEMOIZE
    b"h": lambda m: m.recall(m.take_number("B")),  # BINGET
    b"j": lambda m: m.recall(m.take_number("I")),  # LONG_BINGET
    b"c": lambda m: m.push(Name(f"{m.take_line()}.{m.take_line()}")),  # GLOBAL
    b"\x93": lambda m: m.push(Name(".".join(m.pop_tuple(2)))),  # STACK_GLOBAL
    b"R": lambda m: m.call(),  # REDUCE
    b"Q": lambda m: m.store(),  # BINPERSID
}
"""The instructions that a tensor needs in protocols 2 to 5, with their names in pickletools."""
