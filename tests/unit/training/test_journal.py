import json
import math
import time
from pathlib import Path

import pytest
import torch

from distmoe.engine.engine import StepResult
from distmoe.models.output import ModelOutput
from distmoe.moe.routing import Routing, TokenContext
from distmoe.moe.statistics import RoutingStatistics
from distmoe.parallel.traffic import TrafficCounter
from distmoe.training.journal import Journal
from distmoe.training.monitor import build_monitor
from distmoe.training.objective import LossBreakdown
from distmoe.training.progress import Progress
from distmoe.training.state import TrainerState
from distmoe.training.window import LossWindow
from tests.unit.training.samples import TASKS, batch

ROWS = batch([0, 0, 2], [1.0, 2.0, 0.0])
LOSSES = LossBreakdown(
    total=torch.tensor(3.0),
    task=torch.tensor(3.0),
    loss_B=torch.ones(3),
    sum_by_task_N=torch.tensor([4.0, 0.0, 1.0]),
    count_by_task_N=torch.tensor([2.0, 0.0, 1.0]),
    finite=torch.tensor(1.0),
    auxiliary={},
)


def journal(folder: Path) -> tuple[Journal, TrafficCounter]:
    folder.mkdir(exist_ok=True)
    traffic = TrafficCounter()
    made = Journal(
        tasks=TASKS,
        routed_layers=[3],
        window=LossWindow(3, num_counters=2),
        statistics=RoutingStatistics(num_tasks=3, pool_sizes=[(2,)], top_k=1, device="cpu"),
        all_reduce=None,
        monitor=build_monitor(folder, rank=0, name="r", config={}, tensorboard=False, wandb=False),
        progress=Progress(4, rank=1),
        lr=0.1,
        traffic=[traffic],
        hosts=[{0}],
    )
    return made, traffic


def step(made: Journal, traffic: TrafficCounter) -> None:
    """Tokens of task 0 at expert 0 and 1, of task 2 at expert 1; 8 bytes leave the rank."""
    ids_TK = torch.tensor([[0], [1], [1]])
    routing = Routing(ids_TK, torch.ones(3, 1), torch.full((3, 2), 0.5), torch.zeros(3, 2))
    made.count(ModelOutput(torch.zeros(3, 3), (routing,), TokenContext(ROWS.task_ids_B, torch.arange(3), 3)))
    traffic.record("layer3", "forward", ranks=[0, 1], own=0, send_counts=[2, 1], row_bytes=8)
    made.add([LOSSES], [ROWS], 0.5, StepResult(2.0, skipped=False))


def lines(folder: Path) -> list[dict]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in found:
        line.pop("tokens_per_second", None)
    return found


def test_a_line_holds_means_counts_routing_and_bytes_of_its_window(tmp_path: Path) -> None:
    made, traffic = journal(tmp_path)
    step(made, traffic)
    step(made, traffic)
    made.log(TrainerState(step=2))
    step(made, traffic)
    made.log(TrainerState(step=3))
    first, second = lines(tmp_path)
    assert (first["step"], first["loss"], first["lr"], first["grad_norm"]) == (2, 3.0, 0.05, 2.0)
    assert first["tasks"]["colour"] == {"loss": 2.0, "examples": 4}
    assert first["tasks"]["size"] == {"loss": None, "examples": 0}
    assert first["routing"]["layer_3"]["load"] == [2, 4]
    assert first["routing"]["layer_3"]["tasks"] == {"colour": [2, 2], "size": [0, 0], "shape": [0, 2]}
    assert first["routing"]["layer_3"]["bytes"] == 16
    assert first["routing"]["layer_3"]["bytes_between_task_groups"] == 16  # rank 1 hosts other task groups
    assert (second["routing"]["layer_3"]["load"], second["routing"]["layer_3"]["bytes"]) == ([1, 2], 8)


def test_bytes_of_an_evaluation_do_not_count(tmp_path: Path) -> None:
    made, traffic = journal(tmp_path)
    traffic.record("layer3", "forward", ranks=[0, 1], own=0, send_counts=[0, 9], row_bytes=8)
    made.paused()
    step(made, traffic)
    made.log(TrainerState(step=1))
    assert lines(tmp_path)[0]["routing"]["layer_3"]["bytes"] == 8


def test_a_window_of_skipped_steps_has_no_loss(tmp_path: Path) -> None:
    made, _ = journal(tmp_path)
    made.add((), [ROWS], 0.5, StepResult(float("inf"), skipped=True))
    made.log(TrainerState(step=1, skipped_steps=1))
    assert lines(tmp_path)[0] | {"routing": None} == {"step": 1, "skipped_steps": 1, "routing": None}


def test_a_window_resumed_in_the_middle_writes_the_same_line(tmp_path: Path) -> None:
    whole, first, second = (journal(tmp_path / name) for name in ("whole", "first", "second"))
    for one in (whole, whole, first):
        step(*one)
    second[0].load_state_dict(json.loads(json.dumps(first[0].state_dict())))
    step(*second)
    for one, _ in (whole, second):
        one.log(TrainerState(step=2))
    assert lines(tmp_path / "second") == lines(tmp_path / "whole")


def test_routings_of_a_step_whose_loss_was_not_finite_leave_the_line_strict_json(tmp_path: Path) -> None:
    made, _ = journal(tmp_path)
    routing = Routing(torch.zeros(3, 1, dtype=torch.int64), *(torch.full((3, n), math.nan) for n in (1, 2, 2)))
    made.count(ModelOutput(torch.zeros(3, 3), (routing,), TokenContext(ROWS.task_ids_B, torch.arange(3), 3)))
    made.add((), [ROWS], 0.5, StepResult(math.inf, skipped=True))
    made.log(TrainerState(step=1, skipped_steps=1))
    [line] = (tmp_path / "metrics.jsonl").read_text().splitlines()
    record = json.loads(line, parse_constant=pytest.fail)
    assert record["routing"]["layer_3"]["entropy"] is None


def test_the_speed_of_a_window_counts_its_seconds_before_the_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def stepped(name: str, saved: dict | None) -> tuple[Journal, float | None]:
        """A step of 3 tokens in 2 s, after 100 s of building and loading."""
        made, traffic = journal(tmp_path / name)
        now[0] += 100
        if saved is not None:
            made.load_state_dict(saved)
        else:
            made.paused()
        now[0] += 2
        step(made, traffic)
        saved = json.loads(json.dumps(made.state_dict()))
        made.log(TrainerState(step=1))
        line = (tmp_path / name / "metrics.jsonl").read_text()
        return saved, json.loads(line)["tokens_per_second"]

    saved, speed = stepped("first", None)
    assert speed == 1.5
    assert stepped("resumed", saved)[1] == 1.5
    del saved["seconds"]  # as older checkpoints
    assert stepped("older", saved)[1] == 3.0
