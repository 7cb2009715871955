from __future__ import annotations

from pathlib import Path

import pytest

from distmoe.doctor import machine
from distmoe.doctor.finding import Finding, report


def test_a_report_counts_problems_and_shows_remedies():
    lines = report(
        [Finding("a", "ok", "fine"), Finding("b", "problem", "bad", "mend it"), Finding("c", "warning", "slow")]
    )
    assert lines[0] == "ok       a: fine"
    assert "remedy: mend it" in lines[2]
    assert lines[-1] == "verdict: not ready (1 problems, 1 warnings)"


def test_a_missing_package_is_a_problem():
    assert machine.check_versions(machine.versions()).verdict == "ok"
    found = machine.check_versions({"python": "3.11", "torch": "missing"})
    assert (found.verdict, found.remedy) == ("problem", "install torch (make install)")


def test_fewer_gpus_than_ranks_is_a_problem_and_more_a_warning(monkeypatch):
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    assert [machine.check_devices(4, visible).verdict for visible in (4, 2, 8, 0)] == ["ok", "problem", "warning", "ok"]


def test_cores_are_counted_where_python_has_no_sched_getaffinity(monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    assert machine.check_devices(2, 0).detail == "CPU, 6 cores for 2 ranks"


def test_gpus_of_slurm_that_torch_does_not_see_are_a_problem(monkeypatch):
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "8")
    found = machine.check_devices(8, 0)
    assert (found.verdict, found.detail) == ("problem", "torch sees no GPU, Slurm gave SLURM_GPUS_ON_NODE=8")
    assert "DS_ACCELERATOR=cpu" in found.remedy
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert machine.check_devices(8, 0).verdict == "ok"


@pytest.mark.parametrize(
    ("environ", "verdict"),
    [
        ({}, "ok"),
        ({"GLOO_SOCKET_IFNAME": "eth0"}, "ok"),
        ({"GLOO_SOCKET_IFNAME": "ib0"}, "problem"),
        ({"NCCL_SOCKET_IFNAME": "eth"}, "ok"),  # a prefix
        ({"NCCL_SOCKET_IFNAME": "=eth"}, "ok"),
        ({"NCCL_SOCKET_IFNAME": "^docker"}, "ok"),
        ({"NCCL_SOCKET_IFNAME": "eth0,ib0"}, "problem"),
    ],
)
def test_an_interface_that_is_named_must_exist(environ, verdict):
    assert machine.check_interfaces(environ, ["lo", "eth0"]).verdict == verdict


def test_a_loopback_host_name_matters_between_nodes_only():
    def verdict(address, **options):
        return machine.check_name("n1", address, environ={}, **options).verdict

    assert verdict("127.0.1.1", several_nodes=True) == "warning"
    assert verdict("127.0.1.1", several_nodes=False) == "ok"
    assert verdict("10.0.0.1", several_nodes=True) == "ok"
    assert verdict(None, several_nodes=True) == "problem"


def test_a_folder_must_be_writable_and_large_enough(tmp_path):
    assert machine.check_folder(tmp_path / "new", needed=1).verdict == "ok"
    assert "GiB needed" in machine.check_folder(tmp_path, needed=1e18).detail
    (tmp_path / "file").touch()
    assert machine.check_folder(tmp_path / "file" / "below", needed=1).verdict == "problem"


def test_a_stale_lock_is_named(tmp_path):
    assert machine.check_locks(tmp_path).verdict == "ok"
    lock: Path = tmp_path / "py311_cpu" / "fused_adam" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    assert str(lock) in machine.check_locks(tmp_path).detail
