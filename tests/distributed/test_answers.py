"""Answers to a split that two ranks share, unequally or with nothing for one: scored as by one process."""

from __future__ import annotations

from dataclasses import replace

import pytest

from distmoe.data.config import DataConfig, TextSuiteConfig
from distmoe.data.eval_loader import EvalLoader
from distmoe.data.prepare import encode_tasks
from distmoe.data.sources.text_suite import TextSuiteSource
from distmoe.models.build import build_model
from distmoe.models.decoder_shape import decoder_shape
from distmoe.parallel.placement import place
from distmoe.parallel.process_groups import single_process
from distmoe.tasks import TaskGrouping, TaskSet
from distmoe.tokenization import build_word_tokenizer
from distmoe.training.answers import Answers
from tests.distributed.harness import run_ranks
from tests.unit.models.decoder_samples import decoder_config

# Tasks, and examples of each: 15 to be dealt to two ranks, and one that leaves a rank without any.
SPLITS = ((("reverse", "translate", "shorten"), 5), (("shorten",), 1))
Right = dict[str, list[str]]


def answered(names: tuple[str, ...], count: int, cache: str, *, ranks: int, rank: int, right: Right) -> Answers:
    """The answers of a model with random weights; the references are ``right`` where that has any."""
    source = TextSuiteSource(TextSuiteConfig(kind="generation", train_examples=1, eval_examples=count))
    tasks = TaskSet(tuple(source.spec(name) for name in names))
    tokenizer = build_word_tokenizer(source.vocabulary)
    config = DataConfig(cache_dir=cache, max_length=24, eval_batch_size=4)
    encoded, _ = encode_tasks(tasks, source, tokenizer, config, is_builder=ranks == 1)
    told = tuple(
        replace(split, references=tuple((text,) for text in right[spec.name])) if right else split  # type: ignore[type-var]
        for spec, split in zip(tasks, encoded.validation, strict=True)
    )
    grouping = TaskGrouping.from_partitions(len(tasks), [])
    shape = decoder_shape(decoder_config(max_positions=40), len(tokenizer), 0)
    model = build_model(
        decoder_config(max_positions=40), shape=shape, tasks=tasks, grouping=grouping,
        hosting=single_process(grouping).hosting, seed=1,
    ).eval()  # fmt: skip
    placement = place(grouping, [1.0] * len(tasks), num_ranks=ranks, ep_size=1, mode="colocated")
    loader = EvalLoader(encoded, tasks=tasks, config=config, placement=placement, rank=rank)
    answers = Answers(model, tokenizer, tasks, told, max_new_tokens=6)  # type: ignore[arg-type]
    for batch in loader.batches("validation"):
        answers.add(batch)
    return answers


def work(rank: int, cache: str, references: list[Right]) -> list[tuple[int, dict[int, float]]]:
    """Per split, how many examples this rank answered, and the scores."""
    found = []
    for (names, count), right in zip(SPLITS, references, strict=True):
        answers = answered(names, count, cache, ranks=2, rank=rank, right=right)
        found.append((sum(map(len, answers._texts.values())), dict(answers.scores())))
    return found


@pytest.mark.slow
def test_answers_of_two_ranks_are_scored_like_those_of_one_process(tmp_path):
    references: list[Right] = []
    expected = []
    for names, count in SPLITS:
        texts = answered(names, count, str(tmp_path), ranks=1, rank=0, right={})._texts
        assert all(len(own) == count and all(own.values()) for own in texts.values())
        # Every third reference is another text, so that no score is 0 or 1 by accident.
        right = {
            name: [text if example % 3 else f"not {text}" for example, text in sorted(texts[task].items())]
            for task, name in enumerate(names)
        }
        references.append(right)
        expected.append(dict(answered(names, count, str(tmp_path), ranks=1, rank=0, right=right).scores()))
    assert expected[0][0] == pytest.approx(3 / 5)
    by_rank = run_ranks(work, 2, str(tmp_path), references)
    assert [[count for count, _ in found] for found in by_rank] in ([[8, 1], [7, 0]], [[7, 0], [8, 1]])
    for found in by_rank:
        assert [scores for _, scores in found] == expected
