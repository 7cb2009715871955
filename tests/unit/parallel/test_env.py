"""Who a process is, by launcher. Variables are plain dictionaries: the tests' own environment takes no part."""

from __future__ import annotations

import os
import socket

import pytest
import torch

from distmoe.errors import ParallelError
from distmoe.parallel.env import RankEnv, device, read_env, share_cores

_LAUNCHER = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "n0",
    "MASTER_PORT": "29500",
}
_SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS_PER_NODE": "4",
    "MASTER_ADDR": "n0",
    "MASTER_PORT": "29500",
}


def test_plain_python_is_one_rank_with_a_free_port() -> None:
    environ: dict[str, str] = {}
    assert read_env(environ) == RankEnv(0, 1, 0, 1)
    port = int(environ.pop("MASTER_PORT"))
    assert environ == {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "LOCAL_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
    }
    with socket.socket() as server:
        server.bind(("127.0.0.1", port))


def test_a_second_reading_changes_nothing() -> None:
    environ: dict[str, str] = {}
    read_env(environ)
    before = dict(environ)
    assert read_env(environ) == RankEnv(0, 1, 0, 1)
    assert environ == before


def test_a_launchers_variables_are_kept() -> None:
    environ = dict(_LAUNCHER)
    assert read_env(environ) == RankEnv(5, 8, 1, 4)
    assert environ == _LAUNCHER | {"LOCAL_SIZE": "4"}


def test_deepspeeds_name_for_local_ranks_is_enough() -> None:
    environ = _LAUNCHER | {"LOCAL_SIZE": "4"}
    del environ["LOCAL_WORLD_SIZE"]
    assert read_env(environ) == RankEnv(5, 8, 1, 4)
    assert environ["LOCAL_WORLD_SIZE"] == "4"


def test_a_launcher_wins_over_slurm() -> None:
    assert read_env(_SLURM | _LAUNCHER | {"SLURM_PROCID": "0"}).rank == 5


def test_slurm_fills_the_variables() -> None:
    environ = dict(_SLURM)
    assert read_env(environ) == RankEnv(5, 8, 1, 4)
    assert environ == _SLURM | _LAUNCHER | {"LOCAL_SIZE": "4"}


def test_a_single_slurm_task_needs_nobody_to_meet() -> None:
    environ = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}
    assert read_env(environ) == RankEnv(0, 1, 0, 1)
    assert environ["MASTER_ADDR"] == "127.0.0.1"


@pytest.mark.parametrize(
    "name", ["SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE", "MASTER_ADDR", "MASTER_PORT"]
)
def test_a_missing_slurm_variable_is_named(name: str) -> None:
    environ = {key: value for key, value in _SLURM.items() if key != name}
    with pytest.raises(ParallelError, match=rf"below Slurm(?s:.*)got: +{name} not set(?s:.*)srun --ntasks-per-node=N"):
        read_env(environ)


def test_all_missing_variables_are_in_one_message() -> None:
    with pytest.raises(
        ParallelError, match="WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT not set"
    ):
        read_env({"RANK": "0"})


def test_nodes_with_different_numbers_of_tasks_are_refused() -> None:
    with pytest.raises(ParallelError, match=r"SLURM_NTASKS_PER_NODE=4\(x2\),3"):
        read_env(_SLURM | {"SLURM_NTASKS_PER_NODE": "4(x2),3"})


@pytest.mark.parametrize("change", [{"RANK": "8"}, {"LOCAL_RANK": "4"}, {"LOCAL_WORLD_SIZE": "9"}, {"RANK": "-1"}])
def test_contradictions_are_refused(change: dict[str, str]) -> None:
    ((name, value),) = change.items()
    with pytest.raises(ParallelError, match=rf"contradict each other\n +got: .*\b{name}={value}"):
        read_env(_LAUNCHER | change)


def test_words_for_numbers_are_refused() -> None:
    with pytest.raises(ParallelError, match=r"WORLD_SIZE is not a number\n +got: +'many'"):
        read_env(_LAUNCHER | {"WORLD_SIZE": "many"})


def test_without_a_gpu_the_device_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device(RankEnv(0, 1, 0, 1)) == torch.device("cpu")


@pytest.mark.parametrize("variable", ["SLURM_GPUS_ON_NODE=8", "SLURM_STEP_GPUS=0", "SLURM_JOB_GPUS=0,1"])
@pytest.mark.parametrize(("cuda", "remedy"), [(None, "ACCELERATOR=cuda make install"), ("12.8", "nvidia-smi")])
def test_gpus_of_slurm_that_torch_does_not_see_are_refused(
    monkeypatch: pytest.MonkeyPatch, variable: str, cuda: str | None, remedy: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setenv(*variable.split("="))
    with pytest.raises(ParallelError, match=rf"torch sees none(?s:.*)got: +{variable}, (?s:.*){remedy}"):
        device(RankEnv(0, 1, 0, 1))
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert device(RankEnv(0, 1, 0, 1)) == torch.device("cpu")


def test_a_slurm_job_without_gpus_computes_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "0")
    assert device(RankEnv(0, 1, 0, 1)) == torch.device("cpu")


def test_each_local_rank_has_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend_gpus(monkeypatch, 4)
    assert device(RankEnv(7, 8, 3, 4)) == torch.device("cuda", 3)


def test_deepspeeds_choice_of_the_cpu_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend_gpus(monkeypatch, 4)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert device(RankEnv(7, 8, 3, 4)) == torch.device("cpu")


def test_more_local_ranks_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend_gpus(monkeypatch, 1)
    message = r"got: +LOCAL_RANK=1 with 1 visible GPUs\n +expected: at least 4 .*\n.*--gpus-per-node"
    with pytest.raises(ParallelError, match=message):
        device(RankEnv(1, 8, 1, 4))


def _pretend_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_ranks_share_the_cores_of_their_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    share_cores(RankEnv(0, 4, 0, 4))
    share_cores(RankEnv(0, 16, 0, 16))
    assert given == [2, 1]


def test_where_the_system_does_not_say_all_cores_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS, whose Python has no ``os.sched_getaffinity``."""
    given: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    share_cores(RankEnv(0, 2, 0, 2))
    assert given == [3]


def test_a_number_of_threads_set_by_the_user_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    share_cores(RankEnv(0, 2, 0, 2))
    assert given == []
