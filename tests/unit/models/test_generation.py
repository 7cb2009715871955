"""Generation with a cache equals whole forward passes, and transformers where it has the same model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distmoe.errors import ConfigError
from distmoe.models.decoder_config import DecoderConfig
from distmoe.models.generation import Prompt, generate
from distmoe.models.multitask_decoder import MultiTaskDecoder
from distmoe.models.sampling import Sampling
from tests.unit.checkpoint.decoder_folders import save_decoder
from tests.unit.checkpoint.test_import_decoder import loaded
from tests.unit.models.decoder_samples import decoder_config, logits_of, make_decoder, token_batch
from tests.unit.models.samples import moe_config

BATCH = token_batch((7, 3, 5, 1))
PROMPTS = [
    Prompt(ids[:length].tolist(), task)
    for ids, length, task in zip(BATCH.input_ids_BS, (7, 3, 5, 1), (0, 1, 2, 1), strict=True)
]


def without_cache(model: MultiTaskDecoder, sampling: Sampling, seed: int, steps: int) -> list[list[int]]:
    """Every step is a forward pass over whole rows."""
    generator = torch.Generator().manual_seed(seed)
    rows = [list(prompt.token_ids) for prompt in PROMPTS]
    for _ in range(steps):
        batch = token_batch([len(row) for row in rows])
        for index, row in enumerate(rows):
            batch.input_ids_BS[index, : len(row)] = torch.tensor(row)
        logits_BSV = logits_of(model, batch)
        last_BV = torch.stack([logits_BSV[index, len(row) - 1] for index, row in enumerate(rows)])
        for row, token in zip(rows, sampling.choose(last_BV, generator).tolist(), strict=True):
            row.append(token)
    return [row[len(prompt.token_ids) :] for row, prompt in zip(rows, PROMPTS, strict=True)]


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=1.5, top_k=20, top_p=0.9)], ids=["greedy", "drawn"]
)
@pytest.mark.parametrize("head", ["tied", "per_task"])
def test_the_cache_changes_nothing(sampling: Sampling, head: str) -> None:
    decoder = DecoderConfig(num_kv_heads=2, head=head, qk_norm=True, sliding_window=4)  # type: ignore[arg-type]
    moe = moe_config("token", layers=[1], num_experts=6)
    model = make_decoder(decoder_config(moe, decoder=decoder), partition=[[0, 1], [2]])
    generator = torch.Generator().manual_seed(5)
    found = generate(model, PROMPTS, max_new_tokens=8, sampling=sampling, generator=generator)
    assert found == without_cache(model, sampling, seed=5, steps=8)
    assert len({tuple(row) for row in found}) == 4


def test_greedy_answers_are_those_of_transformers(tmp_path: Path) -> None:
    stock = save_decoder(tmp_path, "qwen3")
    found = generate(loaded(tmp_path), PROMPTS, max_new_tokens=10)
    for prompt, row in zip(PROMPTS, found, strict=True):
        ids = torch.tensor([prompt.token_ids])
        mask = torch.ones_like(ids)
        whole = stock.generate(ids, attention_mask=mask, max_new_tokens=10, do_sample=False, eos_token_id=None)
        assert row == whole[0, len(prompt.token_ids) :].tolist()


def test_an_end_token_ends_its_row_and_no_other() -> None:
    model = make_decoder(decoder_config())
    free = generate(model, PROMPTS, max_new_tokens=6)
    end = free[0][2]
    ended = generate(model, PROMPTS, max_new_tokens=6, end_token_ids=[end])
    assert ended == [row[: row.index(end)] if end in row else row for row in free]
    assert len(ended[0]) <= 2


def test_a_rank_without_prompts_goes_on_as_long_as_the_others() -> None:
    model = make_decoder(decoder_config(moe_config("token", layers="all")))
    asked = []

    def others_need_three_steps(finished: bool) -> bool:
        asked.append(finished)
        return len(asked) == 3

    assert generate(model, [], max_new_tokens=6, all_finished=others_need_three_steps) == []
    assert asked == [True] * 3


def test_what_does_not_fit_the_context_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"7 tokens of prompt, 26 of answer[\s\S]*at most 32"):
        generate(make_decoder(decoder_config()), PROMPTS, max_new_tokens=26)


def test_draws_keep_to_the_most_probable_tokens() -> None:
    """Probabilities 0.5, 0.3, 0.15, 0.05: top_k 2 and top_p 0.6 both leave the first two."""
    logits_BV = torch.tensor([0.05, 0.5, 0.15, 0.3]).log().expand(400, -1)
    for sampling in (Sampling(temperature=1.0, top_k=2), Sampling(temperature=1.0, top_p=0.6)):
        drawn = sampling.choose(logits_BV, torch.Generator().manual_seed(0))
        counts = torch.bincount(drawn, minlength=4)
        assert counts[[0, 2]].tolist() == [0, 0]
        # 0.5 / 0.8 of 400 draws, standard deviation 9.7
        assert abs(int(counts[1]) - 250) < 40
    assert Sampling().choose(logits_BV[:1]).tolist() == [1]


@pytest.mark.parametrize("values", [{"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_sampling_out_of_range_is_refused(values: dict) -> None:
    with pytest.raises(ConfigError, match="temperature >= 0, top_k >= 1 or none, 0 < top_p <= 1"):
        Sampling(**values)
