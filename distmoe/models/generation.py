"""Continues prompts token by token, with a cache of keys and values.

Rows have prompts of different lengths and are padded on the right: slot ``l`` of a row's cache is always its position
``l``, so a row continues behind its own prompt, over the padding.

Shape letters: B rows, S positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distmoe.errors import ConfigError
from distmoe.models.multitask_decoder import MultiTaskDecoder
from distmoe.models.sampling import Sampling
from distmoe.moe.routing import TokenContext
from distmoe.nn.kv_cache import KeyValueCache, empty_cache


@dataclass(frozen=True)
class Prompt:
    """What to continue: token ids, at least one, and the task whose experts and head do it."""

    token_ids: Sequence[int]
    task_id: int


@torch.no_grad()
def generate(
    model: MultiTaskDecoder,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    end_token_ids: Collection[int] = (),
    sampling: Sampling | None = None,
    generator: torch.Generator | None = None,
    all_finished: Callable[[bool], bool] | None = None,
) -> list[list[int]]:
    """Returns the new tokens of each prompt, without the end token.

    Every forward pass is collective where experts live on several ranks. Ranks then give ``all_finished``, and go on
    until all have finished; a row that has is not routed any more, and a rank may have no prompt at all.

    Args:
        model: In eval mode.
        prompts: Of any tasks and lengths.
        max_new_tokens: At most, per prompt.
        end_token_ids: Tokens that end a row.
        sampling: How tokens are drawn; None: greedily.
        generator: Of the draws, on the model's device.
        all_finished: Whether all ranks have finished, from whether this one has; None: there is one rank.

    Raises:
        ConfigError: If prompt and answer together are longer than the model's context.
    """
    _check_lengths(model, prompts, max_new_tokens)
    rows = list(prompts) or [Prompt([model.shape.pad_token_id], 0)]
    table_VD = model.decoder.embeddings.weight
    device = table_VD.device
    lengths_B = torch.tensor([len(prompt.token_ids) for prompt in rows], device=device)
    task_ids_B = torch.tensor([prompt.task_id for prompt in rows], device=device)
    longest = max(len(prompt.token_ids) for prompt in rows)
    ids_BS = torch.full((len(rows), longest), model.shape.pad_token_id, device=device)
    for row, prompt in enumerate(rows):
        ids_BS[row, : len(prompt.token_ids)] = torch.tensor(list(prompt.token_ids))
    caches = [
        empty_cache(
            num_rows=len(rows),
            num_slots=longest + max_new_tokens,
            num_kv_heads=layer.attention.num_kv_heads,  # type: ignore[union-attr, arg-type]
            head_size=model.shape.head_size,
            like=table_VD,
        )
        for layer in model.decoder.layers
    ]
    ends = torch.tensor(sorted(end_token_ids), dtype=torch.int64, device=device)
    running_B = torch.full((len(rows),), bool(prompts), device=device)
    positions_BS = torch.arange(longest, device=device).expand_as(ids_BS)
    sampling = sampling or Sampling()
    answers: list[list[int]] = [[] for _ in rows]
    for step in range(max_new_tokens):
        real_BS = (positions_BS < lengths_B.unsqueeze(1)) & running_B.unsqueeze(1)
        last_B = lengths_B - 1 if step == 0 else torch.zeros_like(lengths_B)
        logits_BV = _last_logits(model, ids_BS, positions_BS, real_BS, last_B, task_ids_B, caches)
        next_B = sampling.choose(logits_BV, generator)
        running_B = running_B & ~torch.isin(next_B, ends)
        for row, (token, runs) in enumerate(zip(next_B.tolist(), running_B.tolist(), strict=True)):
            if runs:
                answers[row].append(token)
        finished = not bool(running_B.any())
        if finished if all_finished is None else all_finished(finished):
            break
        ids_BS, positions_BS = next_B.unsqueeze(1), lengths_B.unsqueeze(1)
        lengths_B = lengths_B + 1
    return answers[: len(prompts)]


def _last_logits(
    model: MultiTaskDecoder,
    ids_BS: Tensor,
    positions_BS: Tensor,
    real_BS: Tensor,
    last_B: Tensor,
    task_ids_B: Tensor,
    caches: Sequence[KeyValueCache],
) -> Tensor:
    """Logits ``[B, V]`` behind column ``last_B`` of each row; the new positions are added to the caches."""
    index_T = real_BS.flatten().nonzero().squeeze(1)
    sequence_ids_T = index_T // ids_BS.shape[1]
    context = TokenContext(task_ids_B[sequence_ids_T], sequence_ids_T, len(ids_BS))
    hidden_BSD, _ = model.decoder(ids_BS, index_T, context, position_ids_BS=positions_BS, caches=caches)
    last_BD = hidden_BSD[torch.arange(len(ids_BS), device=ids_BS.device), last_B]
    return model.heads(last_BD, task_ids_B, model.decoder.embeddings.weight)


def _check_lengths(model: MultiTaskDecoder, prompts: Sequence[Prompt], max_new_tokens: int) -> None:
    longest = max((len(prompt.token_ids) for prompt in prompts), default=1)
    if longest + max_new_tokens > model.shape.max_positions:
        raise ConfigError(
            "prompt and answer together would be longer than the model's context",
            got=f"{longest} tokens of prompt, {max_new_tokens} of answer",
            expected=f"at most {model.shape.max_positions} together",
            remedy="shorten the prompts or max_new_tokens",
        )
    assert all(len(prompt.token_ids) for prompt in prompts), "a prompt has at least one token"
