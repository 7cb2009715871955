"""The model that a checkpoint holds: what its manifest says of it as values, and on demand the whole of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distmoe.checkpoint.consolidate import read_weights
from distmoe.checkpoint.integrity import refuse_damage
from distmoe.checkpoint.manifest import Manifest, read_manifest
from distmoe.checkpoint.run_files import find_shape, find_test_scores
from distmoe.config import build
from distmoe.data.config import DataConfig
from distmoe.errors import CheckpointError
from distmoe.models.build import MultiTaskModel, build_model
from distmoe.models.config import ModelConfig
from distmoe.parallel.process_groups import single_process
from distmoe.tasks import TaskGrouping, TaskSet


@dataclass(frozen=True)
class StoredModel:
    """A checkpoint's model, read without ranks.

    Attributes:
        folder: ``step_N``.
        manifest: Of the checkpoint.
        model: Section ``model`` of the run's configuration.
        tasks: Of the run.
        grouping: Of the run.
    """

    folder: Path
    manifest: Manifest
    model: ModelConfig
    tasks: TaskSet
    grouping: TaskGrouping

    @classmethod
    def read(cls, folder: Path | str) -> StoredModel:
        """Reads the manifest alone.

        Raises:
            CheckpointError: If the folder is not a complete checkpoint.
        """
        manifest = read_manifest(Path(folder))
        return cls(
            Path(folder),
            manifest,
            build(ModelConfig, manifest.config.get("model", {})),
            TaskSet.from_json(manifest.tasks),
            TaskGrouping.from_json(manifest.grouping),
        )

    @property
    def title(self) -> str:
        """Run and step, for people."""
        return f"{self.manifest.config.get('run', {}).get('name', 'distmoe')}, step {self.manifest.step}"

    @property
    def prompt(self) -> str:
        """Template of the prompts that generation tasks were trained on."""
        return str(self.manifest.config.get("data", {}).get("prompt", DataConfig().prompt))

    @property
    def evaluations(self) -> dict[str, Any]:
        """Scores by split, as far as the run evaluated these weights."""
        return {"validation": self.manifest.metrics, "test": find_test_scores(self.folder, self.manifest.step)}

    def rebuild(self) -> MultiTaskModel:
        """Returns the whole model on this process, in float32 and eval mode.

        Every file is compared with its checksum first: one more reading of all files, moments included, against a
        model that looks whole and is not.

        Raises:
            CheckpointError: If the checkpoint is damaged, or its weights are not those of the model that its manifest
                describes.
        """
        refuse_damage(self.folder, self.manifest)
        weights = read_weights(self.folder)
        shape = find_shape(self.folder, self.manifest.config, weights)
        hosting = single_process(self.grouping).hosting
        seed = self.manifest.config.get("run", {}).get("seed", 0)
        model = build_model(
            self.model, shape=shape, tasks=self.tasks, grouping=self.grouping, hosting=hosting, seed=seed
        )
        expected = dict(model.named_parameters()) | {
            name: buffer for name, buffer in model.state_dict().items() if name in weights
        }
        wrong = sorted(
            f"{name} {list(weights[name].shape) if name in weights else 'missing'}"
            for name, tensor in expected.items()
            if name not in weights or weights[name].shape != tensor.shape
        )
        unknown = sorted(weights.keys() - expected.keys())
        if wrong or unknown:
            raise CheckpointError(
                f"the weights of {self.folder} are not those of the model that its manifest describes",
                got=f"missing or of another shape: {wrong[:4] or 'none'}; unknown: {unknown[:4] or 'none'}",
                expected=f"{len(expected)} tensors of a {shape.num_layers}-layer model with {len(self.tasks)} tasks",
                remedy="use the version of distmoe that wrote the checkpoint",
            )
        model.load_state_dict(weights, strict=False)
        return model.float().eval()
