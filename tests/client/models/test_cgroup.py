"""What a container or a service leaves a node of its machine: a fake root with control groups."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from wai_node.models.cgroup import MemoryLimit, cpu_limit, memory_limits
from wai_node.models.hardware import detect_hardware, usable_cores

GIB = 1 << 30
V1_NO_LIMIT = "9223372036854771712"


def put(root: Path, group: str, **files: object) -> None:
    """Files of a group under /sys/fs/cgroup; of a name's dots `__` is one."""
    folder = root / "sys/fs/cgroup" / group
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name.replace("__", ".")).write_text(f"{value}\n")


def member_of(root: Path, *lines: str) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("".join(f"{line}\n" for line in lines))
    return root


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 GiB with 48 free, and 16 cores, whatever runs the test."""
    memory = SimpleNamespace(total=64 * GIB, available=48 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 32 if logical else 16)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(32)), raising=False)


def ram_gib(root: Path) -> tuple[float, float]:
    found = detect_hardware(root / "no-drm", root)
    return found.ram_total_bytes / GIB, found.ram_available_bytes / GIB


@pytest.mark.usefixtures("machine")
def test_a_container_is_not_promised_the_memory_of_its_host(tmp_path: Path) -> None:
    root = member_of(tmp_path, "0::/")
    put(root, "", memory__max=4 * GIB, memory__current=GIB)
    assert ram_gib(root) == (4, 3)


@pytest.mark.usefixtures("machine")
def test_a_limit_of_version_1_counts_too(tmp_path: Path) -> None:
    """Without a namespace the list has the host's path, and the own group is mounted on top."""
    root = member_of(tmp_path, "4:memory:/docker/3b25", "1:cpu,cpuacct:/docker/3b25")
    put(root, "memory", memory__limit_in_bytes=4 * GIB, memory__usage_in_bytes=GIB)
    assert ram_gib(root) == (4, 3)


@pytest.mark.usefixtures("machine")
def test_the_tightest_of_the_groups_above_counts(tmp_path: Path) -> None:
    root = member_of(tmp_path, "0::/user.slice/wai.service")
    put(root, "user.slice/wai.service", memory__max=16 * GIB, memory__current=GIB)
    put(root, "user.slice", memory__max=20 * GIB, memory__current=12 * GIB)
    assert ram_gib(root) == (16, 8), "others in the slice took what this group may have"


@pytest.mark.usefixtures("machine")
def test_a_limit_beyond_the_machine_adds_nothing(tmp_path: Path) -> None:
    root = member_of(tmp_path, "0::/")
    put(root, "", memory__max=500 * GIB, memory__current=GIB)
    assert ram_gib(root) == (64, 48)


def test_the_cache_of_a_download_is_free_and_what_servers_have_mapped_is_not(
    tmp_path: Path,
) -> None:
    stat = f"anon 1\nactive_file {2 * GIB}\ninactive_file {4 * GIB}\nfile_mapped {GIB}"
    root = member_of(tmp_path, "0::/")
    put(root, "", memory__max=8 * GIB, memory__current=7 * GIB, memory__stat=stat)
    assert memory_limits(root) == [MemoryLimit(8 * GIB, 6 * GIB)]


def test_version_1_counts_the_cache_of_its_children(tmp_path: Path) -> None:
    own = f"active_file 9\ninactive_file {3 * GIB}\ntotal_active_file 0\n"
    stat = f"{own}total_inactive_file {4 * GIB}\ntotal_mapped_file {GIB}"
    files = {"memory__limit_in_bytes": 8 * GIB, "memory__usage_in_bytes": 7 * GIB}
    root = member_of(tmp_path, "4:memory:/")
    put(root, "memory", memory__stat=stat, **files)
    assert memory_limits(root) == [MemoryLimit(8 * GIB, 4 * GIB)]


@pytest.mark.parametrize(
    "value", ["max", "", "0", "-1", "4g", "12 x", "9" * 5000, "٤", "\0", V1_NO_LIMIT]
)
def test_a_value_that_is_no_limit_limits_nothing(tmp_path: Path, value: str) -> None:
    root = member_of(tmp_path, "0::/", "4:memory:/")
    put(root, "", memory__max=value, memory__current=GIB, cpu__max=value)
    put(root, "memory", memory__limit_in_bytes=value)
    assert memory_limits(root) == []
    assert cpu_limit(root) is None


@pytest.mark.parametrize(
    "line", ["0::/../../other", "0::/gone/for good", "0::" + "/a" * 40_000, "0::/nul\0"]
)
def test_a_group_that_can_not_be_seen_leaves_the_one_on_top(tmp_path: Path, line: str) -> None:
    root = member_of(tmp_path, line)
    put(root, "", memory__max=4 * GIB)
    put(root.parent, "other", memory__max=1)
    assert memory_limits(root) == [MemoryLimit(4 * GIB, 4 * GIB)]


@pytest.mark.parametrize("text", ["", "nonsense", "::", "0:memory:/", "7::/", "4:memory"])
def test_a_list_of_groups_that_makes_no_sense_limits_nothing(tmp_path: Path, text: str) -> None:
    root = member_of(tmp_path, text)
    put(root, "", memory__max=GIB)
    put(root, "memory", memory__limit_in_bytes="max")
    assert memory_limits(root) == []
    assert memory_limits(root / "absent") == []


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 16), ("250000 100000", 2), ("50000 100000", 1), ("1 0", 16)]
)
def test_a_container_keeps_no_more_cores_busy_than_its_time_allows(
    tmp_path: Path, quota: str, cores: int
) -> None:
    root = member_of(tmp_path, "0::/wai")
    put(root, "wai", cpu__max=quota)
    assert usable_cores(root) == cores


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(("quota", "cores"), [(-1, 16), (400_000, 4)])
def test_processor_time_of_version_1_counts_too(tmp_path: Path, quota: int, cores: int) -> None:
    root = member_of(tmp_path, "0::/", "1:cpu,cpuacct:/docker/3b25")
    put(root, "cpu", cpu__cfs_quota_us=quota, cpu__cfs_period_us=100_000)
    assert usable_cores(root) == cores
