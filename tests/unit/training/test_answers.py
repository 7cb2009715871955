"""What is answered, from which prompt, and against which references; the model is replaced by one that knows."""

import pytest

from distmoe.data.config import DataConfig, TextSuiteConfig
from distmoe.data.eval_loader import EvalLoader
from distmoe.data.prepare import encode_tasks
from distmoe.data.sources.text_suite import TextSuiteSource
from distmoe.errors import ConfigError
from distmoe.tasks import TaskSet
from distmoe.tokenization import build_word_tokenizer
from distmoe.training import answers as module
from distmoe.training.answers import Answers
from distmoe.training.config import RunConfig
from distmoe.training.contradictions import check_answers
from tests.unit.data import toy

SOURCE = TextSuiteSource(TextSuiteConfig(kind="generation", train_examples=4, eval_examples=7))
TASKS = TaskSet(tuple(SOURCE.spec(name) for name in SOURCE.names))
TOKENIZER = build_word_tokenizer(SOURCE.vocabulary)
RIGHT = {
    (task, example.text): example.target
    for task, name in enumerate(SOURCE.names)
    for example in SOURCE.examples(name, "validation")
}


def scores(monkeypatch, tmp_path, answer, *, batch_size=5):
    """Scores of the validation split, if ``answer(task, text)`` is what the model says."""

    def generate(model, prompts, *, max_new_tokens, end_token_ids, all_finished):
        assert (max_new_tokens, end_token_ids, all_finished) == (9, (TOKENIZER.sep_token_id,), None)
        found = []
        for prompt in prompts:
            assert prompt.token_ids[0] == TOKENIZER.cls_token_id
            assert prompt.token_ids[-1] == TOKENIZER.sep_token_id
            text = TOKENIZER.decode(prompt.token_ids[1:-1])
            found.append(TOKENIZER(answer(prompt.task_id, text), add_special_tokens=False)["input_ids"])
        return found

    monkeypatch.setattr(module, "generate", generate)
    config = DataConfig(cache_dir=str(tmp_path), max_length=32, eval_batch_size=batch_size)
    encoded, _ = encode_tasks(TASKS, SOURCE, TOKENIZER, config)
    loader = EvalLoader(encoded, tasks=TASKS, config=config, placement=toy.placement([(1, (0, 1, 2, 3))]), rank=0)
    answers = Answers(None, TOKENIZER, TASKS, encoded.validation, max_new_tokens=9)
    for batch in loader.batches("validation"):
        answers.add(batch)
    return [value for _, value in sorted(answers.scores().items())]


def test_right_answers_score_one_by_every_metric(monkeypatch, tmp_path):
    assert scores(monkeypatch, tmp_path, lambda task, text: RIGHT[task, text]) == pytest.approx([1.0] * 4)


def test_silence_scores_zero_by_every_metric(monkeypatch, tmp_path):
    assert scores(monkeypatch, tmp_path, lambda task, text: "") == [0.0] * 4


def test_answers_go_to_their_own_examples(monkeypatch, tmp_path):
    """One example of task ``reverse`` is answered wrongly: six of seven are right, in whatever batches they come."""
    wrong = SOURCE.examples("reverse", "validation")[3].text

    def answer(task, text):
        return "plus" if (task, text) == (0, wrong) else RIGHT[task, text]

    for batch_size in (3, 64):
        assert scores(monkeypatch, tmp_path, answer, batch_size=batch_size)[0] == pytest.approx(6 / 7)


def test_answers_that_may_not_fit_or_cannot_be_generated_are_refused_before_training():
    config = RunConfig()
    check_answers(config, TASKS, max_positions=192, zero_stage=2)
    with pytest.raises(
        ConfigError, match=r"longer than the model's context[\s\S]*128 \+ run\.max_new_tokens=64[\s\S]*191"
    ):
        check_answers(config, TASKS, max_positions=191, zero_stage=2)
    with pytest.raises(ConfigError, match=r"ZeRO-3 with tasks scored by text: reverse, translate"):
        check_answers(config, TASKS, max_positions=192, zero_stage=3)
