"""Pictures of what a model suggests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from distmoe.structure.similarity import Similarity
from distmoe.tasks.grouping import TaskGroup
from distmoe.training.report import offline
from distmoe.training.structural.offline import Finding, LayerFinding
from tests.unit.training.samples import TASKS


@pytest.mark.parametrize("compared", [False, True])
def test_a_model_whose_tasks_share_every_layer_has_a_tree_and_nothing_to_compare(
    compared: bool, tmp_path: Path
) -> None:
    together: tuple[TaskGroup, ...] = ((0, 1),)
    layers = [LayerFinding(1, together, None, together)]
    if compared:
        similarity = Similarity.from_values(np.array([[1.0, 0.5], [0.5, 1.0]]))
        layers.append(LayerFinding(2, ((0,), (1,)), similarity, ((0,), (1,))))
    offline.draw(Finding(TASKS, tuple(layers), "CKA", is_routed=True), tmp_path, threshold=0.8)
    names = ("similarity", "dendrogram", "tree") if compared else ("tree",)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{name}{dark}.png" for name in names for dark in ("", "-dark")
    }
