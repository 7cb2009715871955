from __future__ import annotations

from pathlib import Path

import pytest

from distmoe.errors import ConfigError, ParallelError
from distmoe.launch import hosts
from distmoe.launch.checks import check_run, reachable
from distmoe.launch.hosts import Seen
from distmoe.launch.places import Hosts, Local, Slurm
from distmoe.recipes.loader import resolve
from distmoe.training.config import RunConfig

PLACE = Hosts({"near": 2, "far": 2, "third": 2}, "10.0.0.1")


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return resolve("demo", [f"run.output_dir={tmp_path}"])


def answering(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(hosts, "look", lambda place, folder: {name: Seen(name in names) for name in place.slots})


@pytest.mark.parametrize(
    ("alive", "slots", "master"),
    [
        (("near", "far"), {"near": 2, "far": 2}, "10.0.0.1"),  # the first host keeps its address
        (("far", "third"), {"far": 2, "third": 2}, "far"),
        (("near", "far", "third"), {"near": 2, "far": 2}, "10.0.0.1"),  # 64 examples cannot be dealt to 6 ranks
    ],
)
def test_ranks_meet_at_the_first_host_that_answers(monkeypatch, config, alive, slots, master):
    answering(monkeypatch, *alive)
    found = reachable(PLACE, config)
    assert (dict(found.slots), found.master) == (slots, master)


def test_no_host_that_answers_is_refused(monkeypatch, config):
    answering(monkeypatch)
    with pytest.raises(ParallelError, match="0 of 3 hosts answer"):
        reachable(PLACE, config)


def test_a_job_is_checked_for_gpus_where_it_is_submitted(monkeypatch, tmp_path):
    """Three families on 16 ranks have 6, 5 and 5 copies, which fp32 trains and the GPUs' bf16 does not."""
    partitioned = resolve("partitioned", [f"run.output_dir={tmp_path}"])
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    with pytest.raises(ConfigError, match=r"no process group for the norm[\s\S]*3 task groups on 16 blocks"):
        check_run(partitioned, Slurm(2, 8), resume="auto")
    unequal = resolve("partitioned", [f"run.output_dir={tmp_path}", "parallel.deepspeed=zero1_bf16_unequal"])
    check_run(unequal, Slurm(2, 8), resume="auto")

    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    check_run(partitioned, Slurm(2, 8), resume="auto")
    check_run(partitioned, Local(16), resume="auto")
