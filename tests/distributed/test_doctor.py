"""The doctor's collective checks on gloo ranks: right values, an equal number of rounds, a token that goes away."""

from __future__ import annotations

from pathlib import Path

from tests.distributed.harness import run_ranks


def examine(rank: int, folder: str) -> list[tuple[str, str]]:
    import torch
    import torch.distributed as dist

    from distmoe.doctor.ranks import block_members, check_ranks, measure

    block, _ = dist.new_subgroups_by_enumeration(block_members(4, tensor=2, ep_size=2))
    findings = check_ranks(Path(folder))
    findings += [one for one in check_ranks(Path("/dev/null/below")) if one.verdict != "ok"]  # rank 0 cannot write
    for name, process_group in (("world", None), ("block", block)):
        findings += measure(name, process_group, torch.device("cpu"), seconds=0.2, megabytes=0.1)
    return [(finding.name, finding.verdict) for finding in findings]


def test_all_ranks_find_the_same(tmp_path: Path) -> None:
    found = run_ranks(examine, 4, str(tmp_path))
    assert found == [found[0]] * 4
    names = [name for name, _ in found[0]]
    assert names[:3] == ["equal software", "clocks", "shared folder"]
    assert names[3:] == [
        "shared folder", "all-reduce, world", "all-to-all, world", "all-reduce, block", "all-to-all, block",
    ]  # fmt: skip
    assert [name for name, verdict in found[0] if verdict != "ok"] == ["shared folder"]
    assert list(tmp_path.iterdir()) == []
