"""A fork moves into its client's cgroup; where it must not, equal limits do, and others are named."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.machine import cgroups
from startup.standby import cgroup_move
from tests.containers import as_user
from tests.startup.standby.state_programs import after, client, forked


@pytest.fixture(params=["pids", "", "cpu", "memory"], ids=["pids", "version_2", "cpu", "memory"])
def new_cgroup(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A cgroup below this process's own, in the hierarchy of one controller of version 1, or of version 2."""
    yield from _new_cgroup(request.param)


@pytest.fixture
def new_pids_cgroup() -> Iterator[Path]:
    yield from _new_cgroup("pids")


def test_fork_moves_into_the_cgroup_of_its_client(new_cgroup: Path) -> None:
    with client(*_inside(new_cgroup)) as executed:
        fork = forked(executed)
    assert (fork["differs"], fork["refused"]) == (None, None)
    assert fork["shown"] == executed["shown"]
    assert new_cgroup.name in fork["shown"]["cgroup"]


def test_fork_leaves_the_cgroup_of_its_template(new_cgroup: Path) -> None:
    with client() as executed:
        fork = forked(executed, *_inside(new_cgroup))
    assert (fork["differs"], fork["refused"]) == (None, None)
    assert fork["shown"] == executed["shown"]


def test_fork_that_must_not_move_stays_if_the_limits_are_the_same(new_cgroup: Path) -> None:
    user = _user()
    with client(*_inside(new_cgroup), *user) as executed:
        fork = forked(executed, *user)
    assert (fork["differs"], fork["refused"]) == (None, None)
    assert new_cgroup.name not in fork["shown"]["cgroup"]


def test_fork_that_must_not_move_names_the_limit_that_differs(new_pids_cgroup: Path) -> None:
    user = _user()
    (new_pids_cgroup / "pids.max").write_text("1000")
    with client(*_inside(new_pids_cgroup), *user) as executed:
        fork = forked(executed, *user)
    assert fork["refused"].startswith("the cgroup could not be set to ")
    assert fork["refused"].endswith("Permission denied, and pids.max is not the same")


@pytest.mark.parametrize(
    ("own", "theirs", "differing"),
    [
        pytest.param({}, {}, None, id="no_files"),
        pytest.param({"a/memory.max": "max"}, {"b/c/memory.max": "max"}, None, id="depth"),
        pytest.param({"a/memory.max": "9"}, {"b/c/memory.max": "9"}, None, id="same_limit"),
        pytest.param({"a/memory.max": "9"}, {"b/memory.max": "9", "b/c/memory.max": "max"}, None, id="limit_of_parent"),
        pytest.param({"a/memory.max": "9"}, {"b/memory.max": "8", "b/c/memory.max": "9"}, "memory.max", id="parent"),
        pytest.param({"a/cpu.max": "50000 100000"}, {"b/c/cpu.max": "max 100000"}, "cpu.max", id="quota"),
        pytest.param({"a/cpu.weight": "100"}, {"b/c/cpu.weight": "20"}, "cpu.weight", id="weight"),
        pytest.param({"pids.max": "5"}, {"b/c/pids.max": "max"}, None, id="common_parent"),
        pytest.param(
            {"cpuset.cpus.effective": "0-3"}, {"b/cpuset.cpus.effective": "0"}, "cpuset.cpus.effective", id="cpus"
        ),
        pytest.param({"cpuset.cpus.effective": "0-3"}, {"b/cpuset.cpus.effective": "0-3"}, None, id="same_cpus"),
    ],
)
def test_limits_of_all_ancestors_count(
    own: dict[str, str], theirs: dict[str, str], differing: str | None, tmp_path: Path
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b" / "c").mkdir(parents=True)
    for name, text in (own | theirs).items():
        (tmp_path / name).write_text(f"{text}\n")
    assert next(cgroup_move.differences(tmp_path / "b" / "c", tmp_path / "a", tmp_path), None) == differing


def test_other_hierarchies_are_refused() -> None:
    with pytest.raises(OSError, match="other cgroup hierarchies"):
        cgroup_move.enter("77:no_such_controller:/")


def _new_cgroup(controller: str) -> Iterator[Path]:
    mount = next((mount for mount in cgroups.mounts() if mount.is_of(controller)), None)
    paths = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    own = mount.folder_of(paths[controller]) if mount and controller in paths else None
    if own is None:
        pytest.skip("no such hierarchy of cgroups is visible here")
    folder = own / f"vllm-cli-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("cgroups must not be made here")
    yield folder
    folder.rmdir()


def _inside(folder: Path) -> tuple[str, ...]:
    return after(f"open('{folder}/cgroup.procs', 'w').write('0')")


def _user() -> tuple[str, ...]:
    user = as_user(12345, 12345, Path(sys.executable))
    if user is None:
        pytest.skip("needs root")
    return user
