"""Where a run can be started, and the commands that start it there."""

from __future__ import annotations

from pathlib import Path

import pytest

from distmoe.errors import ConfigError, ParallelError
from distmoe.launch.command import ROOT, TRAIN, build
from distmoe.launch.places import Hosts, Local, Slurm, read_hostfile, slurm_place


def test_a_hostfile_gives_ranks_per_host_in_its_order(tmp_path: Path) -> None:
    file = tmp_path / "hostfile"
    file.write_text("# the fast ones\nnode2 slots=4\n\nnode1 slots = 8  # and this\n")
    assert list(read_hostfile(file).items()) == [("node2", 4), ("node1", 8)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("node1\n", r"line 1 of .* is not a host[\s\S]*got: +node1"),
        ("node1 slots=2\nnode1 slots=2\n", r"line 2 of"),
        ("node1 slots=0\n", r"line 1 of"),
        ("# none\n", r"names no host"),
    ],
)
def test_a_hostfile_that_cannot_be_meant_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "hostfile"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_hostfile(file)


def test_a_missing_hostfile_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="hostfile does not exist"):
        read_hostfile(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--ntasks-per-node=4", r"--ntasks-per-node contradicts[\s\S]*got: +--ntasks-per-node=4 with 2 nodes of 8"),
        ("--ntasks 8", r"--ntasks contradicts[\s\S]*expected: --ntasks=16"),
        ("-n8", r"-n contradicts"),
        ("--nodes=3 --time=1", r"--nodes contradicts"),
        ("--gpus-per-node=h100:4", r"--gpus-per-node contradicts[\s\S]*expected: --gpus-per-node=8"),
        ("--gpus-per-task=1", r"--gpus-per-task contradicts one rank per GPU"),
        ("--time=1 --export=ALL,A=1", r"got: +--export=ALL,A=1 with --restarts 3[\s\S]*--restarts 0"),
        ("--export NONE", r"got: +--export=NONE"),
    ],
)
def test_options_that_contradict_what_a_job_is_told_are_refused(options: str, message: str) -> None:
    with pytest.raises(ParallelError, match=message):
        slurm_place(2, 8, options, 3)


def test_a_job_without_restarts_may_choose_its_variables() -> None:
    assert slurm_place(1, 8, "--export=NONE", 0).options == ("--export=NONE",)


def test_a_job_names_its_geometry_and_keeps_other_options(tmp_path: Path) -> None:
    place = slurm_place(2, 8, "--time=1-0 --gpus-per-node=h100:8 --partition 'my part'", 3, 2.5)
    command = build(place, ["--recipe", "demo", "run.name=a b"], folder=tmp_path, port=1)
    assert str(command) == (
        "sbatch --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 --export=ALL,DISTMOE_RESTARTS=3,DISTMOE_PAUSE=3 "
        "--time=1-0 --gpus-per-node=h100:8 --partition 'my part' "
        f"{ROOT}/slurm/train.sbatch --recipe demo 'run.name=a b'"
    )
    test = build(Slurm(1, 2), [], folder=tmp_path, port=1, test_only=True)
    assert test.words[:2] == ("sbatch", "--test-only")


def test_local_ranks_are_started_by_deepspeed(tmp_path: Path) -> None:
    words = build(Local(4), ["--recipe", "glue"], folder=tmp_path, port=123).words
    assert words[1:] == ("--num_gpus", "4", "--master_port", "123", str(TRAIN), "--recipe", "glue")
    assert Path(words[0]).name == "deepspeed"


def test_hosts_get_a_file_an_address_and_the_variables_that_ssh_loses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    place = Hosts({"a": 2, "b": 2}, "10.0.0.1", ssh_port=2222)
    command = build(place, ["x.y=1"], folder=tmp_path / "files", port=123)
    assert (tmp_path / "files" / "hostfile").read_text() == "a slots=2\nb slots=2\n"
    handed_on = (tmp_path / "files" / "environment").read_text().splitlines()
    assert "GLOO_SOCKET_IFNAME=ib0" in handed_on
    assert not [line for line in handed_on if line.startswith("CUDA_HOME")]
    assert command.variables == {"DS_ENV_FILE": str(tmp_path / "files" / "environment")}
    assert command.words[3:] == (
        "--master_addr", "10.0.0.1", "--master_port", "123", "--launcher", "pdsh", "--no_ssh_check", "--force_multi",
        "--ssh_port", "2222", str(TRAIN), "x.y=1",
    )  # fmt: skip


def test_without_ssh_every_host_starts_its_own_ranks(tmp_path: Path) -> None:
    place = Hosts({"a": 2, "b": 3}, "a", node_rank=1)
    assert (place.num_ranks, place.ranks_here) == (5, 3)
    words = build(place, [], folder=tmp_path, port=29500).words
    assert words[-4:] == ("--no_ssh", "--node_rank", "1", str(TRAIN))
