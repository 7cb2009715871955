"""Opens the indexed sets of a task as a split, after they have been compared with the run."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from transformers import PreTrainedTokenizerBase

from distmoe.data.indexed.files import SetInfo, open_set, read_info
from distmoe.data.indexed.packing import Ids
from distmoe.data.indexed.tokens import end_token_id
from distmoe.data.indexed.windows import WindowSplit
from distmoe.errors import DataError
from distmoe.tokenization import fingerprint


def open_windows(
    sets: Mapping[str, float],
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    seed: int,
    limit: int | None,
    keep_last: bool,
    where: str,
) -> WindowSplit:
    """A split of a language modelling task; see :class:`~distmoe.data.indexed.windows.WindowSplit`.

    Raises:
        DataError: If a set is missing, damaged, of another tokenizer, or one of pairs.
    """
    for path in sets:
        check_set(path, tokenizer, prompt=None, where=where)
    return WindowSplit(
        sets,
        length=length,
        end_token_id=end_token_id(tokenizer),
        vocab_size=len(tokenizer),
        seed=seed,
        limit=limit,
        keep_last=keep_last,
        where=where,
    )


def read_pairs(
    sets: Mapping[str, float], tokenizer: PreTrainedTokenizerBase, *, prompt: str, where: str
) -> list[tuple[Ids, Ids]]:
    """Prompt and target of every document of a generation task's sets.

    Raises:
        DataError: If a set is missing, damaged, of another tokenizer or template of prompts, or not one of pairs.
    """
    pairs: list[tuple[Ids, Ids]] = []
    for path in sets:
        check_set(path, tokenizer, prompt=prompt, where=where)
        indexed = open_set(path)
        sequences_N = np.diff(indexed.document_indices)
        odd = int(np.argmax(sequences_N != 2))
        if sequences_N[odd] != 2:
            raise DataError(
                f"{where}: {path} is not a set of pairs",
                got=f"document {odd} with {int(sequences_N[odd])} sequences",
                expected="two sequences per document: prompt and target",
                remedy="write the set with tools/preprocess_indexed.py --target_key, or set kind: language_modeling",
            )
        sequences = [indexed[index].astype(np.int64) for index in range(len(indexed))]
        pairs += list(zip(sequences[::2], sequences[1::2], strict=True))
    largest = max((int(max(prompt.max(), target.max())) for prompt, target in pairs), default=0)
    if largest >= len(tokenizer):
        raise _mixed(where, f"id {largest}", f"ids below {len(tokenizer)}, the size of the run's tokenizer")
    return pairs


def check_set(path: str, tokenizer: PreTrainedTokenizerBase, *, prompt: str | None, where: str) -> None:
    """Refuses a set that distmoe wrote for something else; of other programs' sets nothing is known.

    Args:
        path: Of the set, without suffix.
        tokenizer: Of the run.
        prompt: The run's template of prompts, for pairs; None for plain documents.
        where: Task and split, for messages.

    Raises:
        DataError: If the set was made with another tokenizer or template, or for another kind of task.
    """
    info: SetInfo | None = read_info(path)
    if info is None:
        return
    own = fingerprint(tokenizer)
    if info.tokenizer != own:
        raise _mixed(
            f"{where}, {path}",
            f"a set made with tokenizer {info.tokenizer[:12]} ({info.vocab_size} tokens)",
            f"the run's tokenizer {own[:12]} ({len(tokenizer)} tokens), one for all tasks",
        )
    has_targets = prompt is not None
    if info.has_targets != has_targets:
        kinds = {True: "pairs of prompt and target", False: "plain documents"}
        raise DataError(
            f"{where}: {path} is made for another kind of task",
            got=kinds[info.has_targets],
            expected=kinds[has_targets],
            remedy="correct the task's kind, or preprocess " + ("with" if has_targets else "without") + " --target_key",
        )
    # Training reads the prompts of the set; whoever asks the model afterwards puts texts into data.prompt.
    if info.prompt is not None and info.prompt != prompt:
        raise DataError(
            f"{where}: {path} has prompts of another template",
            got=f"a set made with --prompt {info.prompt!r}",
            expected=f"data.prompt={prompt!r}",
            remedy="set data.prompt to the set's template, or preprocess again with the run's",
        )


def _mixed(where: str, got: str, expected: str) -> DataError:
    return DataError(
        f"{where}: token ids of another tokenizer",
        got=got,
        expected=expected,
        remedy="set data.tokenizer to the tokenizer that made the set, or preprocess again with the run's",
    )
