"""The keys `groups` and `hooks`: which models must not run together, and which run from the start."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from base.wording import list_some
from envs.suggestion import did_you_mean
from startup.router.model_entry import ModelEntry
from startup.router.models_file.document import Findings, show


@dataclass
class _Group:
    name: str
    members: list[str] = field(default_factory=list)
    swap: bool = True
    exclusive: bool = True
    persistent: bool = False


def apply_groups(
    groups: Mapping[str, Mapping[str, Any]], entries: Mapping[str, ModelEntry], findings: Findings
) -> dict[str, ModelEntry]:
    """The models with what they exclude.

    As in llama-swap, other servers that are in no group run one at a time. Models of our own that are in no
    group are only bound by memory.
    """
    known = list(_checked_groups(groups, entries, findings))
    grouped = {member for group in known for member in group.members}
    others = [name for name, entry in entries.items() if entry.foreign is not None and name not in grouped]
    if len(others) > 1 and not groups:
        findings.notice(
            ("models",),
            f"{list_some(others)} run one at a time, as the memory that such commands need is unknown: to let them run "
            "together, put them into a group with swap: false and exclusive: false",
        )
    known.append(_Group("", others, exclusive=bool(groups)))
    kept = {member for group in known if group.persistent for member in group.members}
    kept |= {entry.name for entry in entries.values() if entry.pinned}
    result = dict(entries)
    for group in known:
        outside = set(entries) - set(group.members) - kept if group.exclusive else set()
        if not group.name:
            outside &= grouped
        for name in group.members:
            inside = set(group.members) - {name} if group.swap else set()
            result[name] = replace(entries[name], excludes=frozenset(outside | inside))
    _check_pinned(known, entries, findings)
    return result


def _checked_groups(
    groups: Mapping[str, Mapping[str, Any]], entries: Mapping[str, ModelEntry], findings: Findings
) -> Iterator[_Group]:
    group_of: dict[str, str] = {}
    for name, keys in groups.items():
        group = _Group(name, [], *(keys.get(key, default) for key, default in _GROUP_DEFAULTS))
        for number, member in enumerate(keys["members"]):
            path = ("groups", name, "members", number)
            if member not in entries:
                findings.fault(path, f"{show(member)} is no model of this file{did_you_mean(member, entries)}")
            elif member in group_of:
                findings.fault(path, f"{show(member)} is already in groups.{group_of[member]}: name it in one group")
            else:
                group_of[member] = name
                group.members.append(member)
        yield group


_GROUP_DEFAULTS: Final = (("swap", True), ("exclusive", True), ("persistent", False))


def _check_pinned(groups: Iterable[_Group], entries: Mapping[str, ModelEntry], findings: Findings) -> None:
    """A model that is never stopped for another one keeps the others of its group from starting."""
    for group in groups:
        pinned = next((name for name in group.members if entries[name].pinned), None)
        if pinned is not None and group.swap and len(group.members) > 1:
            where = f"groups.{group.name}" if group.name else "commands without a group"
            findings.fault(
                ("models", pinned, "pinned"),
                f"must be false, or no other model of {where}, of which one runs at a time, could ever start",
            )


def check_preload(names: Iterable[str], entries: Mapping[str, ModelEntry], findings: Findings) -> set[str]:
    """The models of `hooks.on_startup.preload`."""
    found = set()
    for number, name in enumerate(names):
        entry = entries.get(name) or next((e for e in entries.values() if name in e.aliases), None)
        if entry is None:
            path = ("hooks", "on_startup", "preload", number)
            findings.fault(path, f"{show(name)} is no model of this file{did_you_mean(name, entries)}")
        else:
            found.add(entry.name)
    return found
