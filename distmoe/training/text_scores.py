"""Scores of generated text against references, by sacrebleu and rouge-score; from 0 to 1, higher is better.

==========================  =========================================================================================
metric                      score
==========================  =========================================================================================
bleu                        corpus BLEU of sacrebleu (13a tokenization, exponential smoothing) / 100
chrf                        corpus chrF2 of sacrebleu / 100
rouge_l                     mean over examples of the best ROUGE-L F1 over references (rouge-score, with stemming)
exact_match                 share of answers equal to a reference, apart from white space at the ends and its amount
exact_match_final_number    share of answers whose last number equals that of a reference (grade-school mathematics)
==========================  =========================================================================================
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from distmoe.errors import ConfigError
from distmoe.tasks import TaskSet, TaskSpec

References = Sequence[tuple[str, ...]]
# Digits with thousands separators, and decimals; a full stop at the end belongs to the sentence.
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def score_texts(spec: TaskSpec, answers: Sequence[str], references: References) -> float:
    """Returns the task's metric.

    Args:
        spec: Names the metric.
        answers: One per example, at least one.
        references: Right answers of each example, at least one each.

    Raises:
        NotImplementedError: If the metric is not one of texts, or a new one without a branch here.
    """
    if spec.metric == "bleu":
        return _corpus_score("BLEU", answers, references)
    if spec.metric == "chrf":
        return _corpus_score("CHRF", answers, references)
    if spec.metric == "rouge_l":
        return _rouge_l(answers, references)
    same = {"exact_match": _same_text, "exact_match_final_number": _same_number}.get(spec.metric)
    if same is None:
        raise NotImplementedError(f"metric {spec.metric} of task {spec.name} is not computed from texts")
    right = [any(same(answer, one) for one in several) for answer, several in zip(answers, references, strict=True)]
    return sum(right) / len(right)


def require_scorers(tasks: TaskSet) -> None:
    """Refuses tasks whose scores need a library that is missing, before anything is trained.

    Raises:
        ConfigError: Naming the library.
    """
    for spec in tasks:
        if spec.metric in ("bleu", "chrf"):
            _library("sacrebleu", spec.metric)
        if spec.metric == "rouge_l":
            _library("rouge_score.rouge_scorer", spec.metric)


def final_number(text: str) -> Decimal | None:
    """The last number of a text; ``1,200.50`` is one number."""
    found = _NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "")) if found else None


def _corpus_score(name: str, answers: Sequence[str], references: References) -> float:
    # sacrebleu wants one list per reference; an example with fewer has None there.
    most = max(len(several) for several in references)
    columns = [[several[i] if i < len(several) else None for several in references] for i in range(most)]
    scorer = getattr(_library("sacrebleu", name.lower()), name)()
    return float(scorer.corpus_score(list(answers), columns).score) / 100


def _rouge_l(answers: Sequence[str], references: References) -> float:
    scorer = _library("rouge_score.rouge_scorer", "rouge_l").RougeScorer(["rougeL"], use_stemmer=True)
    best = [
        max(scorer.score(one, answer)["rougeL"].fmeasure for one in several)
        for answer, several in zip(answers, references, strict=True)
    ]
    return float(sum(best) / len(best))


def _same_text(answer: str, reference: str) -> bool:
    return answer.split() == reference.split()


def _same_number(answer: str, reference: str) -> bool:
    number = final_number(reference)
    return number is not None and final_number(answer) == number


def _library(name: str, metric: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as failure:
        raise ConfigError(
            f"metric {metric} needs {name.split('.')[0]}",
            got=f"{type(failure).__name__}: {failure}",
            expected=f"{name.split('.')[0].replace('_', '-')} in this environment",
            remedy='in the folder of distmoe: pip install -e ".[lm]"',
        ) from failure
