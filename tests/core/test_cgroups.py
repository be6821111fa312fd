"""What a container leaves of the machine."""

import os
import subprocess
import sys

import pytest
from lmf import cgroups


@pytest.fixture
def system(tmp_path):
    """Return a function that writes the groups of this process and their files, and gives both places."""

    def make(own, files):
        (tmp_path / "cgroup").write_text(own)
        for name, text in files.items():
            file = tmp_path / "fs" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return tmp_path / "cgroup", tmp_path / "fs"

    return make


def test_memory_is_limited_by_each_group_around_the_process(system):
    assert cgroups.memory(*system("0::/a/b\n", {"a/b/memory.max": "max\n"})) == []
    assert cgroups.memory(*system("0::/a/b\n", {"a/memory.max": "2000\n"})) == [2000]
    assert cgroups.memory(*system("0::/a/b\n", {"a/b/memory.max": "3000\n"})) == [3000, 2000]


def test_memory_is_limited_by_a_group_of_version_1(system):
    own = "5:cpu,cpuacct:/job\n4:memory:/job\n"
    assert cgroups.memory(*system(own, {"memory/job/memory.limit_in_bytes": "4096\n"})) == [4096]


@pytest.mark.parametrize(
    ("text", "cores"), [("max 100000", None), ("200000 100000", 2), ("150000 100000", 2), ("10000 100000", 1)]
)
def test_the_time_of_a_group_is_a_number_of_cores(system, text, cores):
    assert cgroups.cores(*system("0::/a\n", {"a/cpu.max": text})) == cores


def test_the_narrowest_group_counts(system):
    assert cgroups.cores(*system("0::/a/b\n", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "800000 100000"})) == 3


@pytest.mark.parametrize(("quota", "cores"), [("-1", None), ("400000", 4)])
def test_the_time_of_a_group_of_version_1(system, quota, cores):
    files = {"cpu/job/cpu.cfs_quota_us": quota, "cpu/job/cpu.cfs_period_us": "100000"}
    assert cgroups.cores(*system("5:cpu,cpuacct:/job\n4:memory:/job\n", files)) == cores


def test_where_there_are_no_groups_there_is_no_limit(tmp_path):
    assert cgroups.cores(tmp_path / "none", tmp_path) is None
    assert cgroups.memory(tmp_path / "none", tmp_path) == []


THREADS = """
import os, sys
import lmf_cli
from lmf import cgroups
cgroups.cores = lambda: 1
os.cpu_count = lambda: 64
sys.argv = ["lmf", "--help"]
try:
    lmf_cli.main()
finally:
    import torch
    print("threads", torch.get_num_threads())
"""


@pytest.mark.parametrize(("asked", "threads"), [({}, 1), ({"OMP_NUM_THREADS": "2"}, 2)])
def test_the_command_line_has_as_many_threads_as_there_is_time_for_or_as_were_asked_for(asked, threads):
    variables = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | asked
    result = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, env=variables)
    assert result.stdout.splitlines()[-1] == f"threads {threads}", result.stderr
