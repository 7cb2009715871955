"""A trained model as the rest of distmoe sees it: forward, backward, step; nothing of DeepSpeed shows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from distmoe.checkpoint import store
from distmoe.checkpoint.fragments import Fragment
from distmoe.checkpoint.global_view import GlobalView
from distmoe.checkpoint.manifest import Manifest, TensorRecord
from distmoe.checkpoint.store import LoadedState
from distmoe.engine import compatibility, deepspeed_folder
from distmoe.engine.config import OptimizerConfig
from distmoe.engine.ds_config import DeepSpeedSettings
from distmoe.engine.fragments import adam_step, fragments_of, prepare_states, set_adam_step, tensor_records
from distmoe.engine.optimizer import set_learning_rate
from distmoe.tasks import TaskGrouping, TaskSet


class Save(Protocol):
    """Writes a checkpoint, as :func:`distmoe.checkpoint.store.save` or later."""

    def __call__(
        self,
        root: Path,
        *,
        manifest: Manifest,
        fragments: list[Fragment],
        trainer_state: Mapping[str, Any],
        rank_state: Mapping[str, Any],
    ) -> Path: ...


class Load(Protocol):
    """Fills fragments from a checkpoint and returns the rest."""

    def __call__(self, folder: Path, *, manifest: Manifest, fragments: list[Fragment]) -> LoadedState: ...


@dataclass(frozen=True)
class StepResult:
    """What an optimizer step did.

    Attributes:
        grad_norm: Global norm of the averaged gradient before clipping, experts counted once each; ``inf`` if skipped.
        skipped: Whether the weights stayed as they were: the norm was not finite (in fp16: the loss scale was too
            large and has been lowered).
    """

    grad_norm: float
    skipped: bool


class Engine:
    """Made by :func:`distmoe.engine.initialize.initialize`. All ranks call every method, in the same order.

    One optimizer step::

        for batch in micro_batches:                 # exactly engine.accumulation_steps of them
            output = engine(batch)
            engine.backward(objective(output, batch))
        result = engine.step(lr_factor)

    The gradient is the mean of the losses' gradients over ranks and micro-batches.
    """

    def __init__(
        self,
        ds_engine: Any,
        model: nn.Module,
        *,
        settings: DeepSpeedSettings,
        optimizer: OptimizerConfig,
        views: Mapping[str, GlobalView],
        topology: Mapping[str, Any],
    ) -> None:
        self._ds = ds_engine
        self.module = model
        self.settings = settings
        self._config = optimizer
        self.views = dict(views)
        self._topology = dict(topology)
        self._backwards = 0

    @property
    def device(self) -> torch.device:
        return torch.device(self._ds.device)

    @property
    def accumulation_steps(self) -> int:
        return self.settings.accumulation_steps

    @property
    def global_steps(self) -> int:
        """Optimizer steps so far, skipped ones included."""
        return int(self._ds.global_steps)

    def __call__(self, *inputs: Any) -> Any:
        """The model's output; while evaluating, without gradients."""
        if self.module.training:
            output, _ = self._ds(*inputs)
        else:
            with torch.no_grad():
                output, _ = self._ds(*inputs)
        return output

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of one micro-batch's loss, a scalar."""
        assert self._backwards < self.accumulation_steps, "more micro-batches than accumulation_steps: call step()"
        self._ds.backward(loss)
        self._backwards += 1
        if self._backwards < self.accumulation_steps:
            self._ds.step()  # only counts the micro-batch

    def step(self, lr_factor: float) -> StepResult:
        """Updates the weights; every param group's learning rate is ``optimizer.lr * its scale * lr_factor``."""
        assert self._backwards == self.accumulation_steps, (
            f"{self._backwards} of {self.accumulation_steps} micro-batches"
        )
        base = compatibility.base_optimizer(self._ds.optimizer)
        set_learning_rate(base.param_groups, lr=self._config.lr, factor=lr_factor)
        norm_before = self._unsharded_norm()
        if norm_before is not None and not math.isfinite(norm_before):  # the sharded optimizers skip by themselves
            self.skip_step()
            return StepResult(grad_norm=math.inf, skipped=True)
        self._ds.step()
        self._backwards = 0
        norm = self._ds.get_global_grad_norm() if norm_before is None else norm_before
        return StepResult(grad_norm=float(norm), skipped=not self._ds._step_applied)

    def skip_step(self) -> None:
        """Forgets the gradients since the last step and counts a step without an update; collective."""
        compatibility.drop_gradients(self._ds)
        self._backwards = 0
        self._ds.global_steps += 1
        self._ds.skipped_steps += 1

    def train_mode(self) -> None:
        self._ds.train()

    def eval_mode(self) -> None:
        self._ds.eval()

    def tensor_records(self) -> dict[str, TensorRecord]:
        """Every global tensor over all ranks, by name; collective."""
        return tensor_records(self.module, self.views)

    def fragments(self) -> list[Fragment]:
        """Everything this rank owns of the training state; the data is the state itself, not a copy."""
        prepare_states(self._ds.optimizer)
        return fragments_of(self.module, self._ds.optimizer, self.views)

    def save_state(
        self,
        root: Path,
        *,
        tasks: TaskSet,
        grouping: TaskGrouping,
        trainer_state: Mapping[str, Any],
        rank_state: Mapping[str, Any],
        config: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
        score: float | None = None,
        save: Save = store.save,
    ) -> Path:
        """Writes ``root/step_N`` (N: :attr:`global_steps`) and returns it.

        Args:
            root: The run's ``checkpoints/``.
            tasks: Tasks of the run.
            grouping: Task grouping of the run.
            trainer_state: JSON values, equal on all ranks.
            rank_state: This rank's tensors and JSON values: random states, data position.
            config: Resolved configuration as plain values.
            metrics: Scores at this step.
            score: Validation macro score; decides which checkpoint is the best.
            save: Another than the default writes beside training.

        Raises:
            CheckpointError: On every rank, if any rank could not write.
        """
        assert self._backwards == 0, "a checkpoint in the middle of a step would lose gradients"
        fragments = self.fragments()
        manifest = Manifest(
            step=self.global_steps,
            tasks=tasks.to_json(),
            grouping=grouping.to_json(),
            config=dict(config or {}),
            metrics=dict(metrics or {}),
            score=score,
            optimizer={
                "adam_step": adam_step(self._ds.optimizer),
                "skipped_steps": self._ds.skipped_steps,
                "loss_scaler": compatibility.loss_scaler_state(self._ds.optimizer),
            },
            topology=dict(self._topology),
            tensors=self.tensor_records(),
        )
        return save(
            Path(root), manifest=manifest, fragments=fragments, trainer_state=trainer_state, rank_state=rank_state
        )

    def save_deepspeed(self, root: Path) -> Path:
        """Writes DeepSpeed's own folder ``root/step_N`` and returns it; see :mod:`distmoe.engine.deepspeed_folder`."""
        assert self._backwards == 0, "a checkpoint in the middle of a step would lose gradients"
        prepare_states(self._ds.optimizer)
        return deepspeed_folder.write(self._ds, root, f"step_{self.global_steps}")

    def load_state(self, folder: Path, *, manifest: Manifest, load: Load = store.load) -> LoadedState:
        """Restores weights, moments and counters, whatever ranks, stage, precision and placement wrote them.

        Args:
            folder: A checkpoint ``step_N``.
            manifest: From :func:`distmoe.checkpoint.store.check`, which refuses unfit checkpoints at once.
            load: Fills the fragments; another than the default where the model's task groups have changed since.

        Raises:
            CheckpointError: If the model has other tensors; nothing is changed then.
        """
        loaded = load(Path(folder), manifest=manifest, fragments=self.fragments())
        set_adam_step(self._ds.optimizer, int(manifest.optimizer["adam_step"]))
        compatibility.set_loss_scaler_state(self._ds.optimizer, manifest.optimizer["loss_scaler"])
        compatibility.refresh_weights(self._ds.optimizer)
        self._ds.global_steps = manifest.step
        self._ds.skipped_steps = int(manifest.optimizer["skipped_steps"])
        return loaded

    def destroy(self) -> None:
        """Removes DeepSpeed's hooks from the model, so that another engine may host it."""
        self._ds.destroy()

    def _unsharded_norm(self) -> float | None:
        """ZeRO-0 does not report a norm; its gradients are whole and averaged on every rank when a step begins."""
        if compatibility.is_zero(self._ds.optimizer):
            return None
        gradients = [parameter.grad for parameter in self.module.parameters() if parameter.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))
