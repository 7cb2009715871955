import sys
from decimal import Decimal

import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from distmoe.errors import ConfigError
from distmoe.tasks import TaskSet, TaskSpec
from distmoe.training.text_scores import final_number, require_scorers, score_texts

ANSWERS = ["the mill is a cheap pub", "the eagle serves fish by the river"]
REFERENCES = [("the mill is a cheap pub near the river", "a cheap pub is the mill"), ("the eagle serves fish",)]


def spec(metric):
    return TaskSpec(name="task", kind="generation", metric=metric)


@pytest.mark.parametrize(("metric", "function"), [("bleu", sacrebleu.corpus_bleu), ("chrf", sacrebleu.corpus_chrf)])
def test_corpus_scores_are_sacrebleus_also_with_unequally_many_references(metric, function):
    columns = [[REFERENCES[0][0], REFERENCES[1][0]], [REFERENCES[0][1], None]]
    assert score_texts(spec(metric), ANSWERS, REFERENCES) == function(ANSWERS, columns).score / 100


def test_rouge_takes_the_best_reference():
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    first = max(scorer.score(one, ANSWERS[0])["rougeL"].fmeasure for one in REFERENCES[0])
    second = scorer.score(REFERENCES[1][0], ANSWERS[1])["rougeL"].fmeasure
    assert score_texts(spec("rouge_l"), ANSWERS, REFERENCES) == pytest.approx((first + second) / 2)


def test_a_metric_without_a_formula_is_refused_and_not_taken_for_another():
    with pytest.raises(NotImplementedError, match="metric token_accuracy of task task"):
        score_texts(spec("token_accuracy"), ANSWERS, REFERENCES)


def test_exact_match_ignores_white_space_only():
    answers = [" a  b\n", "A b", "c"]
    assert score_texts(spec("exact_match"), answers, [("a b",), ("a b",), ("b", "c")]) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She has 2*7= <<2*7=14>>14 days\n#### 1,200", "1200"),
        ("It costs $3.50.", "3.50"),
        ("The answer is 18.", "18"),
        ("minus -4", "-4"),
        ("none", None),
    ],
)
def test_the_final_number(text, number):
    assert final_number(text) == (None if number is None else Decimal(number))


def test_equal_final_numbers_may_be_written_otherwise():
    answers = ["so 18.0", "1,200 in all", "19", "none"]
    references = [("#### 18",), ("#### 1200",), ("#### 18",), ("#### 18",)]
    assert score_texts(spec("exact_match_final_number"), answers, references) == 0.5


def test_a_missing_library_is_named_before_training(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    require_scorers(TaskSet((spec("exact_match"),)))
    with pytest.raises(ConfigError, match=r'metric bleu needs sacrebleu[\s\S]*pip install -e "\.\[lm\]"'):
        require_scorers(TaskSet((spec("bleu"),)))
