"""Gate `task_description`: as `task_embedding`, with task vectors made from frozen encodings of descriptions.

A task that was never trained can be routed by its description alone, next to the tasks it resembles.

Shape letters: M tasks, V width of an encoding.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from distmoe.moe.gates.setting import GateSetting
from distmoe.moe.gates.task_embedding import TaskEmbeddingGate
from distmoe.tasks import TaskSet, TaskSpec

_WIDTH = 256  # of each half; a description has tens of features, so few of them collide


class TaskDescriptionGate(TaskEmbeddingGate):
    """``z = R([h ; tau_t])``, tau_t an MLP of a frozen vector of the task's description.

    Args:
        setting: What does not depend on the kind of gate.
        router: ``mlp`` or ``linear``.
        vector_size: Width of tau.
        hidden_size: Hidden width of the task MLP and of the MLP router.
        vectors_MV: One frozen vector per task, for example of :func:`encode_descriptions`, or mean-pooled states of a
            sentence encoder; about unit length.
    """

    def __init__(
        self,
        setting: GateSetting,
        *,
        router: Literal["mlp", "linear"],
        vector_size: int,
        hidden_size: int,
        vectors_MV: Tensor,
    ) -> None:
        assert vectors_MV.shape[:-1] == (setting.num_tasks,), "one vector per task"
        super().__init__(
            setting, router=router, vector_size=vector_size, hidden_size=hidden_size, features_MV=vectors_MV
        )


def encode_descriptions(tasks: TaskSet) -> Tensor:
    """Encodes each task's text without a model or a network: equal on every machine, unit length.

    Two hashed bags side by side, words (one and two of them, English stop words left out) and character 3- to
    5-grams inside words, each of unit length before both are scaled by 1/sqrt(2). Texts that share words or stems have
    a positive product. It knows no synonyms: hand in vectors of a sentence encoder where that matters.

    Returns:
        [M, 512], float32.
    """
    from sklearn.feature_extraction.text import HashingVectorizer  # a slow import that other gates do not need

    texts = [describe(spec) for spec in tasks]
    words = HashingVectorizer(n_features=_WIDTH, ngram_range=(1, 2), stop_words="english")
    stems = HashingVectorizer(n_features=_WIDTH, ngram_range=(3, 5), analyzer="char_wb")
    halves = [vectorizer.transform(texts).toarray() for vectorizer in (words, stems)]
    return torch.from_numpy(np.concatenate(halves, axis=1) / np.sqrt(2)).float()


def describe(spec: TaskSpec) -> str:
    """The task's description, or its name, type and labels where it has none."""
    if spec.description:
        return spec.description
    return " ".join((spec.name, spec.kind, *spec.labels)).replace("_", " ")
