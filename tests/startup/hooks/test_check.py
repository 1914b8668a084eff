"""Hooks are compared with planted sources."""

from pathlib import Path

import pytest

from startup.hooks.check import Finding, check_hooks
from startup.hooks.hook import Hook, Name, Need, Reads, Text
from startup.hooks.sources import Sources, packages_beside

_MODULE = """
VALUE = 1

def call(first, second=None, *, third, fourth=None):
    return first.known, first.other

def anything(*args, **kwargs): ...

class Owner:
    def method(self, first): ...
"""


def _check(need: Need, folder: Path, *, source: str = _MODULE, **hook: tuple[int, int]) -> Finding:
    (folder / "package").mkdir(exist_ok=True)
    (folder / "package" / "__init__.py").write_text("")
    (folder / "package" / "module.py").write_text(source)
    planted = Hook("planted", does="something", without="nothing", needs=(need,), **hook)
    (finding,) = check_hooks([planted], Sources(packages_beside(folder)), (0, 32))
    return finding


CALL = Name("package.module", "call", ("first", "third"))


@pytest.mark.parametrize(
    "need",
    [
        Name("package"),
        Name("package.module", "VALUE"),
        Name("package.module", "call"),
        CALL,
        Name("package.module", "call", ("first", "second", "third", "fourth")),
        Name("package.module", "anything", ("whatever",)),
        Name("package.module", "Owner.method", ("first",)),
        Text(("package.absent", "package.module"), r"^VALUE = \d", "a value"),
        Reads(CALL, "first", ("known", "other", "more")),
    ],
    ids=str,
)
def test_what_is_there_applies(need: Need, tmp_path: Path) -> None:
    assert _check(need, tmp_path) == Finding("planted", "applies")


@pytest.mark.parametrize(
    ("need", "reason"),
    [
        (Name("package.absent"), "module package.absent is missing"),
        (Name("package.absent", "name"), "module package.absent is missing"),
        (Name("package.module", "absent"), "package.module has no absent"),
        (Name("package.module", "Owner.absent"), "package.module has no Owner.absent"),
        (Name("package.module", "call", ("first",)), "package.module.call needs third"),
        (Name("package.module", "call", ("first", "third", "fifth")), "package.module.call takes no fifth"),
        (Name("package.module", "Owner.method", ()), "package.module.Owner.method needs first"),
        (
            Text(("package.module", "package.other"), "absent", "a word"),
            "package.module or package.other: a word is not",
        ),
        (Reads(CALL, "first", ("known",)), "package.module.call reads other of first too"),
    ],
    ids=str,
)
def test_what_is_missing_or_changed_is_named(need: Need, reason: str, tmp_path: Path) -> None:
    finding = _check(need, tmp_path)
    assert finding.state == "does not fit"
    assert finding.reasons[0].startswith(reason)


def test_a_package_that_is_not_there_is_not_checked(tmp_path: Path) -> None:
    finding = _check(Name("absent.module", "name"), tmp_path)
    assert finding == Finding("planted", "not checked", ("absent is not installed here",))


@pytest.mark.parametrize("limits", [{"until": (0, 31)}, {"since": (0, 33)}], ids=["older", "newer"])
def test_a_release_that_does_not_need_the_hook_is_not_checked(
    limits: dict[str, tuple[int, int]], tmp_path: Path
) -> None:
    assert _check(Name("package.absent"), tmp_path, **limits) == Finding("planted", "not needed")


def test_what_is_known_not_to_apply_has_its_reason(tmp_path: Path) -> None:
    hook = Hook("planted", does="it", without="nothing", needs=(Name("package"),), not_in={(0, 32): "a reason"})
    sources = Sources(packages_beside(tmp_path))
    assert check_hooks([hook], sources, (0, 32)) == [Finding("planted", "does not apply", ("a reason",))]
    assert check_hooks([hook], sources, (0, 33))[0].state == "not checked"
