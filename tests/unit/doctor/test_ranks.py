from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from distmoe.doctor.ranks import Presence, compare

RANK = Presence("n1", {"torch": "2.13", "nccl": "2.27"}, clock=100.0, sees_token=True)


def verdicts(*ranks: Presence) -> dict[str, str]:
    return {finding.name: finding.verdict for finding in compare(ranks, Path("/shared"))}


def test_equal_ranks_are_fine():
    assert verdicts(RANK, replace(RANK, host="n2", clock=101.0)) == {
        "equal software": "ok", "clocks": "ok", "shared folder": "ok"
    }  # fmt: skip


def test_another_version_names_both_hosts_and_the_rank():
    other = replace(RANK, host="n2", versions={"torch": "2.12", "nccl": "2.27"})
    found = compare([RANK, RANK, other], Path("/shared"))[0]
    assert (found.verdict, found.detail) == ("problem", "torch is 2.13 on n1 and 2.12 on n2 (rank 2)")


def test_a_folder_that_a_rank_does_not_see_and_a_late_clock_are_found():
    found = verdicts(RANK, replace(RANK, sees_token=False, clock=110.0))
    assert (found["shared folder"], found["clocks"]) == ("problem", "warning")
