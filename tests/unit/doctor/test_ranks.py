from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from distmoe.doctor.ranks import Presence, _seen, block_members, check_ranks, compare, measure

RANK = Presence("n1", {"torch": "2.13", "nccl": "2.27"}, clock=100.0)


def verdicts(*ranks: Presence) -> dict[str, str]:
    return {finding.name: finding.verdict for finding in compare(ranks)}


def test_equal_ranks_are_fine():
    assert verdicts(RANK, replace(RANK, host="n2", clock=101.0)) == {"equal software": "ok", "clocks": "ok"}


def test_another_version_names_both_hosts_and_the_rank():
    other = replace(RANK, host="n2", versions={"torch": "2.12", "nccl": "2.27"})
    found = compare([RANK, RANK, other])[0]
    assert (found.verdict, found.detail) == ("problem", "torch is 2.13 on n1 and 2.12 on n2 (rank 2)")


def test_a_late_clock_is_found():
    assert verdicts(RANK, replace(RANK, clock=110.0))["clocks"] == "warning"


def test_a_folder_that_some_ranks_do_not_see_names_them():
    found = _seen({2: "n2", 3: "n2"}, Path("/shared"))
    assert (found.verdict, found.detail) == ("problem", "/shared of rank 0 is not seen by ranks [2, 3] (n2)")


@pytest.fixture
def world_of_one():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_folder_that_rank_0_cannot_write_is_a_finding_beside_the_others(world_of_one, tmp_path):
    (tmp_path / "file").touch()
    found = check_ranks(tmp_path / "file" / "below")
    assert [finding.verdict for finding in found] == ["ok", "ok", "problem"]
    assert found[-1].detail.startswith("rank 0 cannot write into the folder of the run: NotADirectoryError")


def test_wrong_values_are_a_finding(world_of_one, monkeypatch):
    """Of the sum only: the rows of the all-to-all stay right."""
    right = dist.all_reduce

    def wrong(tensor, **options):
        right(tensor, **options)
        if tensor.dim() == 2:
            tensor += 1

    monkeypatch.setattr(dist, "all_reduce", wrong)
    reduced, exchanged = measure("world", None, torch.device("cpu"), seconds=0.01, megabytes=0.01)
    assert (reduced.verdict, exchanged.verdict) == ("problem", "ok")
    assert re.match(r"wrong values in (\d+) of \1 rounds on ", reduced.detail)


@pytest.mark.parametrize(
    ("num_ranks", "tensor", "ep_size", "blocks"),
    [
        (8, 1, 4, [(0, 1, 2, 3), (4, 5, 6, 7)]),
        (8, 2, 2, [(0, 2), (1, 3), (4, 6), (5, 7)]),  # tensor neighbours are not of one block
        (4, 2, 2, [(0, 2), (1, 3)]),
        (6, 1, 4, []),
    ],
)
def test_a_block_is_made_of_data_ranks(num_ranks, tensor, ep_size, blocks):
    assert block_members(num_ranks, tensor=tensor, ep_size=ep_size) == blocks
