import os
import subprocess
import sys

import pytest
import torch

from sparsegen.common.hardware import has_bfloat16, processors


@pytest.mark.parametrize(
    ("instructions", "allowed", "found"),
    [
        (True, None, True),
        (True, "ALL", True),
        (True, "AVX512_CORE_AMX", True),
        (True, "avx2", False),
        (True, "AVX512_CORE", False),
        (False, None, False),
    ],
)
def test_bfloat16_is_used_if_the_processor_supports_it_and_it_is_not_disabled(
    instructions: bool, allowed: str | None, found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": instructions})
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if allowed:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", allowed)
    assert has_bfloat16("cpu") == found
    assert not has_bfloat16("meta")


def test_processors_counts_those_of_the_affinity() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert processors() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "100000 100000"}, 1),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
    ],
)
def test_the_quota_of_a_container_limits_processors_and_the_threads_of_torch(
    files: dict[str, str], expected: int | None
) -> None:
    """In a mount namespace whose /sys/fs/cgroup shows what a container's shows."""
    script = "set -e; mount -t tmpfs none /sys/fs/cgroup; mkdir /sys/fs/cgroup/cpu\n"
    script += "\n".join(f"echo {text} > /sys/fs/cgroup/{name}" for name, text in files.items())
    namespace = ["unshare", "--mount", "sh", "-c"]
    if subprocess.run([*namespace, script], capture_output=True).returncode:
        pytest.skip("mount namespaces are not permitted here")
    program = (
        "import torch; from sparsegen.common.hardware import processors, use_threads; use_threads(); "
        "print(processors(), torch.get_num_threads())"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    run = subprocess.run(
        [*namespace, f"{script}\nexec {sys.executable} -c '{program}'"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    available = len(os.sched_getaffinity(0))
    limit = min(expected or available, available)
    count, threads = map(int, run.stdout.split())
    assert count == limit and threads <= limit
