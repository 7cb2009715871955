"""Generates the answers of the tasks whose metric compares texts, while a split is evaluated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed as dist
from transformers import PreTrainedTokenizerBase

from distmoe.data.batch import NO_LOSS, TaskBatch
from distmoe.data.encoded import AnySplit
from distmoe.data.indexed.tokens import end_token_id
from distmoe.models.generation import Prompt, generate
from distmoe.models.multitask_decoder import MultiTaskDecoder
from distmoe.tasks import TaskSet
from distmoe.training.agreement import is_distributed
from distmoe.training.text_scores import score_texts


class Answers:
    """Answers of one split. All ranks call :meth:`add` equally often, and then :meth:`scores`.

    Args:
        model: In eval mode while answers are added.
        tokenizer: Of the run.
        tasks: The run's tasks.
        split: Per task, with references where answers are wanted.
        max_new_tokens: Longest answer.
    """

    def __init__(
        self,
        model: MultiTaskDecoder,
        tokenizer: PreTrainedTokenizerBase,
        tasks: TaskSet,
        split: Sequence[AnySplit],
        *,
        max_new_tokens: int,
    ) -> None:
        self._model, self._tokenizer, self._tasks = model, tokenizer, tasks
        self._references = {
            task: split[task].references or () for task, spec in enumerate(tasks) if spec.is_scored_by_text
        }
        self._max_new_tokens = max_new_tokens
        self._texts: dict[int, dict[int, str]] = {task: {} for task in self._references}

    def add(self, batch: TaskBatch) -> None:
        """Answers the batch's prompts; collective, also for a rank that has none."""
        if not self._references:
            return
        rows = [row for row, task in enumerate(batch.task_ids_B.tolist()) if self._wants(batch, row, task)]
        prompts = [Prompt(_prompt(batch, row), int(batch.task_ids_B[row])) for row in rows]
        found = generate(
            self._model,
            prompts,
            max_new_tokens=self._max_new_tokens,
            end_token_ids=(end_token_id(self._tokenizer),),
            all_finished=_all_finished(batch.input_ids_BS.device) if is_distributed() else None,
        )
        for row, prompt, ids in zip(rows, prompts, found, strict=True):
            self._texts[prompt.task_id][int(batch.example_ids_B[row])] = str(self._tokenizer.decode(ids))

    def scores(self) -> Mapping[int, float]:
        """Score of each task that is scored by text; collective, equal on all ranks."""
        every = [self._texts]
        if is_distributed():
            every = [{} for _ in range(dist.get_world_size())]
            dist.all_gather_object(every, self._texts)
        result = {}
        for task, references in self._references.items():
            texts = {example: text for own in every for example, text in own.get(task, {}).items()}
            assert len(texts) == len(references), "an example was not answered"
            ordered = [texts[example] for example in range(len(references))]
            result[task] = score_texts(self._tasks[task], ordered, references)
        return result

    def _wants(self, batch: TaskBatch, row: int, task: int) -> bool:
        return task in self._references and bool(batch.example_mask_B[row])


def _prompt(batch: TaskBatch, row: int) -> list[int]:
    """The tokens up to the position from which the first target token is predicted."""
    assert batch.labels_BS is not None
    first = int((batch.labels_BS[row] != NO_LOSS).int().argmax())
    return batch.input_ids_BS[row, : first + 1].tolist()


def _all_finished(device: torch.device) -> Callable[[bool], bool]:
    def agree(finished: bool) -> bool:
        flag = torch.tensor(int(finished), device=device)
        dist.all_reduce(flag, op=dist.ReduceOp.MIN)
        return bool(flag)

    return agree
