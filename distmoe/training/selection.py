"""Which checkpoint is the best, and when to stop early.

The rule: the highest macro score (mean over tasks of each task's own metric) on the validation splits; the earlier
step wins a tie. Never a maximum per metric or per task: such a table mixes checkpoints that no user can have together.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass
class BestScore:
    """Counters of model selection; plain numbers, equal on all ranks.

    Attributes:
        patience: Evaluations without a better score before :attr:`should_stop`; ``None``: never.
        score: Best macro score so far; ``None`` before the first evaluation.
        step: Step of that score.
        evaluations_without_improvement: Since then.
    """

    patience: int | None = None
    score: float | None = None
    step: int = -1
    evaluations_without_improvement: int = 0

    def update(self, score: float, step: int) -> bool:
        """Records an evaluation; returns whether it is the best so far."""
        if self.score is None or score > self.score:
            self.score, self.step, self.evaluations_without_improvement = score, step, 0
            return True
        self.evaluations_without_improvement += 1
        return False

    @property
    def should_stop(self) -> bool:
        return self.patience is not None and self.evaluations_without_improvement >= self.patience

    def state_dict(self) -> dict[str, float | int | None]:
        return {key: value for key, value in asdict(self).items() if key != "patience"}

    def load_state_dict(self, state: dict) -> None:
        self.score, self.step = state["score"], state["step"]
        self.evaluations_without_improvement = state["evaluations_without_improvement"]
