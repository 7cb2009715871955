"""Uncertainty sampling that was stopped and killed equals the run that was left alone: scores, choices, weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distmoe.checkpoint.consolidate import read_weights
from distmoe.data.config import SuiteConfig
from distmoe.data.sources.suite import SuiteSource
from distmoe.tokenization.word_tokenizer import build_word_tokenizer
from tests.integration.commands import ROOT, metrics, overrides, run_ranks
from tests.unit.checkpoint.samples import save_hf

SCORES = ROOT / "tests" / "integration" / "drivers" / "scores.py"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SAMPLING = ("data.sampling.strategy=uncertainty", "data.sampling.candidates=16", "data.sampling.quota=1")
DENSE = ("model.moe=null", "structure.grouping=one")
CONDITIONAL = ("model.conditional.attention.block_side=4", "model.conditional.embedding_size=8")


def frozen_half(folder: Path) -> list[str]:
    """A pretrained encoder whose lower half is frozen, with dropout: states of the small tasks are kept."""
    tokenizer = build_word_tokenizer(SuiteSource(SuiteConfig(num_task_groups=2)).vocabulary)
    pretrained = folder / "pretrained"
    save_hf(pretrained, vocab_size=len(tokenizer), max_position_embeddings=64)
    tokenizer.save_pretrained(pretrained)
    return [f"model.pretrained={pretrained}", "model.freeze=lower_half",
            "model.conditional.condition_from=first_trainable"]  # fmt: skip


def test_an_interrupted_run_scores_and_chooses_what_the_uninterrupted_one_does(tmp_path: Path) -> None:
    more = [*DENSE, *CONDITIONAL, *SAMPLING, *frozen_half(tmp_path)]

    def run(folder: Path, moment: str, count: int, rank: int, name: str) -> list[int]:
        arguments = [moment, str(count), str(rank), name, *overrides(folder, *more)]
        ended = run_ranks(folder, arguments, script=SCORES)
        assert "frozen trunk: 1 layers, states of 64 training examples" in ended[0].output, ended[0].output
        return [one.code for one in ended]

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run(whole, "backward", 10_000, 0, "SIGKILL") == [0, 0]
    assert run(broken, "backward", 3, 1, "SIGTERM") == [0, 0]
    codes = run(broken, "backward", 3, 1, "SIGKILL")
    assert codes[1] == -9
    assert codes[0] not in (0, 2)
    assert run(broken, "backward", 10_000, 0, "SIGKILL") == [0, 0]

    for rank in range(2):
        expected, found = ((path / f"scores.{rank}.txt").read_text().splitlines() for path in (whole, broken))
        assert len(expected) == 12
        assert len(found) > 12  # the killed run had gone on after its last checkpoint
        assert set(found) == set(expected)
    assert metrics(broken / "run") == metrics(whole / "run")
    expected, found = (read_weights(path / "run" / "checkpoints" / "step_12") for path in (whole, broken))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
