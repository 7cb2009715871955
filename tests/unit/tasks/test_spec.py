"""A task's description refuses what contradicts itself."""

from __future__ import annotations

import pytest

from distmoe.errors import DataError
from distmoe.tasks import TaskSpec

GOOD = {"name": "t", "kind": "classification", "metric": "accuracy", "labels": ("no", "yes")}


def test_heads_are_as_wide_as_the_labels_or_one():
    assert TaskSpec(**GOOD).num_outputs == 2
    regression = TaskSpec(name="r", kind="regression", metric="pearson")
    assert regression.is_regression
    assert regression.num_outputs == 1


@pytest.mark.parametrize("kind", ["generation", "language_modeling"])
def test_an_answer_in_tokens_has_no_head_of_its_own(kind):
    spec = TaskSpec(name="g", kind=kind, metric="token_accuracy")
    assert spec.predicts_tokens
    assert not spec.is_regression
    assert spec.num_outputs == 0


def test_a_pair_classification_has_two_texts_without_saying_so():
    assert TaskSpec(**(GOOD | {"kind": "pair_classification"})).pair
    assert not TaskSpec(**GOOD).pair


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"kind": "tagging"},
            r"unknown type[\s\S]*got: +tagging[\s\S]*classification \| pair_classification \| regression",
        ),
        ({"metric": "meteor"}, r"unknown metric[\s\S]*got: +meteor"),
        ({"labels": ("no",)}, "at least two different class names"),
        ({"labels": ("no", "no")}, "at least two different class names"),
        ({"metric": "pearson"}, r"metric for numbers[\s\S]*accuracy \| f1 \| macro_f1 \| matthews"),
        ({"kind": "regression"}, "regression with class labels"),
        ({"kind": "regression", "labels": ()}, r"metric for classes[\s\S]*pearson \| spearman"),
        ({"kind": "generation"}, "generation with class labels"),
        ({"kind": "generation", "labels": ()}, r"metric for other tasks[\s\S]*token_accuracy \| inverse_perplexity"),
        ({"kind": "generation", "labels": (), "metric": "bleu", "pair": True}, r"predicts tokens from one text"),
        ({"metric": "f1", "positive_label": 5}, r"counts as positive[\s\S]*positive_label 5, 2 labels[\s\S]*0 to 1"),
        ({"metric": "token_accuracy"}, r"metric for numbers[\s\S]*accuracy \| f1"),
    ],
)
def test_a_contradiction_is_refused(change, message):
    with pytest.raises(DataError, match=message):
        TaskSpec(**(GOOD | change))
