"""When a run is saved, and what is saved besides weights and moments.

``trainer.json`` holds what is equal on all ranks: progress, best score, position in the data, window sums. Each rank's
own file holds its random generators. Together with weights and moments they make a resumed run repeat the uninterrupted
one bit for bit.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

from distmoe.checkpoint import folders, store
from distmoe.checkpoint.carry import Carrier
from distmoe.checkpoint.config import CheckpointConfig
from distmoe.checkpoint.saver import Saver
from distmoe.checkpoint.together import together
from distmoe.data.loader import StepLoader
from distmoe.engine.engine import Engine
from distmoe.log import get_logger
from distmoe.parallel.rank_grid import RankGrid
from distmoe.seed import seed_all
from distmoe.tasks import TaskGrouping, TaskSet
from distmoe.training.config import RunConfig
from distmoe.training.evaluate import Evaluation
from distmoe.training.journal import Journal
from distmoe.training.state import TrainerState, rng_state, set_rng_state

_log = get_logger(__name__)


class Checkpoints:
    """Saves and restores a run.

    Args:
        root: The run's ``checkpoints/``.
        config: The whole configuration; its section ``checkpoint`` says when and what to keep.
        engine: Weights and moments.
        loader: Data position.
        journal: Window sums and routing counters.
        state: Progress.
        tasks: Recorded in the manifest.
        grouping: Recorded in the manifest.
        saver: Of the run, shared by its structural phases.
        grid: Rank of this process.
    """

    def __init__(
        self,
        root: Path,
        *,
        config: RunConfig,
        engine: Engine,
        loader: StepLoader,
        journal: Journal,
        state: TrainerState,
        tasks: TaskSet,
        grouping: TaskGrouping,
        saver: Saver,
        grid: RankGrid,
    ) -> None:
        self._root, self._config, self._grid = root, config, grid
        self._engine, self._loader, self._journal, self._state = engine, loader, journal, state
        self._tasks, self._grouping, self._saver = tasks, grouping, saver

    @property
    def save_failed(self) -> bool:
        """Whether this rank knows that the save beside training failed; :meth:`wait` raises its error."""
        return self._saver.has_failed

    @property
    def _options(self) -> CheckpointConfig:
        return self._config.checkpoint

    def is_due(self, step: int, *, is_best: bool) -> bool:
        """Whether ``checkpoint.every`` or a new best evaluation asks for one after this step."""
        every = self._options.every
        return (every is not None and step % every == 0) or (is_best and self._options.keep_best)

    def save(self, evaluation: Evaluation | None = None) -> Path:
        """Writes the checkpoint of this step, then removes what need not be kept. Collective.

        With ``checkpoint.asynchronous`` only a copy is made here; :meth:`wait` before the folder is read.

        Args:
            evaluation: The validation scores of this very step, if there are any.

        Raises:
            CheckpointError: On all ranks, if one could not write this one, or the one before beside training; the last
                good one is untouched.
        """
        began = time.perf_counter()
        trainer_state = {
            "progress": self._state.state_dict(),
            "data": self._loader.state_dict(),
            "journal": self._journal.state_dict(),
        }
        folder = self._engine.save_state(
            self._root,
            tasks=self._tasks,
            grouping=self._grouping,
            trainer_state=trainer_state,
            rank_state=rng_state(),
            config=self._config.model_dump(),
            metrics=None if evaluation is None else evaluation.to_json(),
            score=None if evaluation is None else evaluation.macro,
            save=partial(self._saver.save, say=self._journal.say),
        )
        if self._options.format == "deepspeed":
            self._save_deepspeed()
        if self._options.asynchronous:
            self._journal.say(f"saving {folder} while training goes on; held for {time.perf_counter() - began:.2f} s")
        return folder

    def _save_deepspeed(self) -> None:
        """DeepSpeed's own folder of this step, and of no step whose checkpoint is gone."""
        folder = self._engine.save_deepspeed(self._root.parent / "deepspeed")
        if self._grid.rank == 0:
            folders.follow(folder.parent, self._root)
            self._journal.say(f"saved {folder} for DeepSpeed")

    def wait(self) -> None:
        """Returns when every checkpoint is complete.

        Raises:
            CheckpointError: On all ranks, if the save beside training failed.
        """
        self._saver.wait()

    def load(self, folder: Path, carrier: Carrier | None = None) -> None:
        """Restores everything. Collective.

        Args:
            folder: A checkpoint; without a carrier, one whose checksums have been compared.
            carrier: Of a run whose task groups have been merged since: weights and moments go through it, and the
                counters of an unfinished log window, whose shapes were others, stay empty.

        Raises:
            CheckpointError: If the checkpoint is damaged or of another task set, grouping or model.
        """
        grouping = self._grouping if carrier is None else carrier.plan.before
        # Where a run resumes, its set-up has compared every checksum already.
        manifest = store.check(folder, tasks=self._tasks, grouping=grouping, checksums=carrier is not None)
        load = store.load if carrier is None else carrier.load
        loaded = self._engine.load_state(folder, manifest=manifest, load=load)
        if not loaded.trainer_state:  # tools/edit_tasks.py wrote it: weights and moments of a run that begins
            return
        self._state.load_state_dict(loaded.trainer_state["progress"])
        self._loader.load_state_dict(loaded.trainer_state["data"])
        if carrier is None:
            self._journal.load_state_dict(loaded.trainer_state["journal"])
        # Tensor neighbours draw the same numbers: a rank's own are of use at the same degree only.
        if loaded.rank_state is not None and manifest.topology.get("tensor", 1) == self._grid.tensor:
            set_rng_state(loaded.rank_state)
        else:
            seed_all(self._config.run.seed, "resumed", self._state.step, self._grid.data_rank)
            _log.warning(
                "the number of data or tensor ranks has changed: dropout draws other numbers than it would have"
            )

    def load_best_weights(self) -> int | None:
        """Puts the weights of the best checkpoint into the model, for a last evaluation; returns its step. Collective.

        ``None``: the current weights are the best, or best checkpoints are not kept, or, with a warning, this run does
        not have it.
        """
        best = self._state.best.step
        if not self._options.keep_best or best in (-1, self._state.step):
            return None
        # One rank looks: what it finds decides whether all of them meet in loading.
        [folder, *_] = together(lambda: self._find(best), None, self._root)
        if folder is None:
            if self._grid.rank == 0:
                _log.warning(
                    "the best checkpoint, step_%d, is not in %s: the last weights are scored", best, self._root
                )
            return None
        self._engine.load_state(folder, manifest=store.check(folder, tasks=self._tasks, grouping=self._grouping))
        return best

    def _find(self, step: int) -> Path | None:
        return folders.by_step(self._root).get(step) if self._grid.rank == 0 else None
