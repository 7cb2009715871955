from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from distmoe.checkpoint.consolidate import read_moments, read_weights
from distmoe.checkpoint.edit_tasks import add_task, remove_task
from distmoe.checkpoint.edited_run import EditedRun
from distmoe.checkpoint.manifest import read_manifest
from distmoe.checkpoint.new_task import mixture
from distmoe.checkpoint.stored_model import StoredModel
from distmoe.checkpoint.task_edit import adding, removing
from distmoe.errors import CheckpointError, ConfigError, DataError
from distmoe.models.multitask import MultiTaskEncoder
from distmoe.recipes.loader import resolve
from distmoe.tasks import TaskGrouping, TaskSet, TaskSpec
from tests.unit.checkpoint.runs import trained, write_run
from tests.unit.checkpoint.tools import main_of
from tests.unit.models.samples import GATES, TASKS, make_batch, model_config, moe_config
from tests.unit.models.test_conditional import conditional

NEW = TaskSpec(name="tone", kind="classification", metric="accuracy", labels=tuple("abcd"), description="A mood, too?")
GATE = "encoder.layers.1.feed_forward.gate"


def _checkpoint(
    folder: Path, gate: str = "task", partition: Any = None, *, conditioned: str | None = None, **changes: Any
) -> Path:
    config = model_config(
        moe_config(gate, **changes), conditional=None if conditioned is None else conditional(generator=conditioned)
    )
    partition = partition or [[0, 1], [2]]
    return write_run(folder, config, trained(config, partition=partition), partition=partition)


def _model(checkpoint: Path) -> MultiTaskEncoder:
    return StoredModel.read(checkpoint).rebuild()


@torch.no_grad()
def _logits(checkpoint: Path, task_ids: tuple[int, ...]) -> list[Tensor]:
    """Logits of each row, its own outputs only."""
    logits_BC = _model(checkpoint)(make_batch((7, 3, 5), task_ids)).logits_BC
    return [row[row.isfinite()] for row in logits_BC]


def _add(checkpoint: Path, out: Path, policy: Any = "nearest", **options: Any) -> EditedRun:
    return add_task(checkpoint, out, NEW, task_folder=out.parent / "tone", policy=policy, **options)


@pytest.mark.parametrize(("gate", "conditioned"), [*((gate, None) for gate in GATES), ("task", "table")])
def test_what_the_other_tasks_compute_does_not_change_by_a_bit(
    tmp_path: Path, gate: str, conditioned: str | None
) -> None:
    old = _checkpoint(tmp_path / "run", gate, conditioned=conditioned)
    added = _add(old, tmp_path / "added", "average").checkpoint
    before, after = _logits(old, (0, 1, 2)), _logits(added, (0, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert len(_logits(added, (3, 0, 1))[0]) == 4
    again = remove_task(added, tmp_path / "again", "tone").checkpoint
    for name, value in read_weights(old).items():
        if name != "heads.weight":  # columns beyond a task's outputs are free
            assert torch.equal(read_weights(again)[name], value), name
    assert all(torch.equal(a, b) for a, b in zip(before, _logits(again, (0, 1, 2)), strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"experts_per_task": 2}, r"counted by its tasks[\s\S]*experts_per_task=2"),
        ({"unit": "block", "experts_per_task_group": 1}, r"whole layers per task group[\s\S]*unit=block"),
    ],
)
def test_models_whose_routed_layers_depend_on_their_tasks_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    old = _checkpoint(tmp_path / "run", **changes)
    for edit in (lambda: _add(old, tmp_path / "out"), lambda: remove_task(old, tmp_path / "out", "mood")):
        with pytest.raises(CheckpointError, match=message):
            edit()
    assert not (tmp_path / "out").exists()


def test_generators_of_one_more_task_embedding_round_otherwise(tmp_path: Path) -> None:
    """No number that an old task reads has changed, but a matrix product of four rows rounds unlike one of three."""
    old = _checkpoint(tmp_path / "run", conditioned="linear")
    added = _add(old, tmp_path / "added").checkpoint
    for before, after in zip(_logits(old, (0, 1, 2)), _logits(added, (0, 1, 2)), strict=True):
        torch.testing.assert_close(after, before, atol=1e-5, rtol=0)


def test_rows_move_and_experts_leave_with_their_last_task(tmp_path: Path) -> None:
    """Tasks 0, 1, 2 in groups {0, 2}, {1}. Without 0, old 1 is task 0 and its group comes first: g0 and g1 swap."""
    old = _checkpoint(tmp_path / "run", partition=[[0, 2], [1]])
    done = remove_task(old, tmp_path / "swapped", "mood")
    assert done.grouping.layers == (((0,), (1,)),)
    weights, new = read_weights(old), read_weights(done.checkpoint)
    pool = "encoder.layers.1.feed_forward.pools"
    assert torch.equal(new[f"{pool}.g0.w_in"], weights[f"{pool}.g1.w_in"])
    assert torch.equal(new[f"{pool}.g1.w_in"], weights[f"{pool}.g0.w_in"])
    assert torch.equal(new[f"{GATE}.logits_ME"], weights[f"{GATE}.logits_ME"][[1, 2]][:, [2, 3, 0, 1]])
    for before, after in zip(_logits(old, (1, 2, 1)), _logits(done.checkpoint, (0, 1, 0)), strict=True):
        assert torch.equal(before, after)
    alone = remove_task(old, tmp_path / "alone", "topic")
    assert read_manifest(alone.checkpoint).config["model"]["moe"]["num_experts"] == 2
    assert torch.equal(read_weights(alone.checkpoint)[f"{pool}.g0.w_in"], weights[f"{pool}.g0.w_in"])
    for before, after in zip(_logits(old, (0, 2, 0)), _logits(alone.checkpoint, (0, 1, 0)), strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("policy", ["nearest", "average", "description", "router_only"])
def test_a_policy_makes_the_new_row_of_the_gate(tmp_path: Path, policy: str) -> None:
    """The description of `tone` shares words with that of `mood`; `mood` and `topic` are one task group."""
    old = _checkpoint(tmp_path / "run")
    done = _add(old, tmp_path / "new", policy)
    assert done.like == "mood"
    assert done.grouping.layers == (((0, 1, 3), (2,)),)
    rows, row = read_weights(old)[f"{GATE}.logits_ME"], read_weights(done.checkpoint)[f"{GATE}.logits_ME"][3]
    match policy:
        case "nearest":
            assert torch.equal(row, rows[0])
        case "average":
            assert torch.equal(row, (rows[0] + rows[1]) / 2)
        case "description":
            share = (row - rows[1]) / (rows[0] - rows[1])
            assert 0.5 < share[0] < 1
            torch.testing.assert_close(share, share[:1].expand(4), atol=1e-3, rtol=0)
        case "router_only":
            assert row.abs().max() < 0.1  # the fresh row of standard deviation 0.02


def test_a_task_embedding_is_mixed_over_all_tasks(tmp_path: Path) -> None:
    """Conditional modules know no task groups: `average` is over all three tasks."""
    old = _checkpoint(tmp_path / "run", conditioned="linear")
    name = next(name for name in read_weights(old) if name.endswith("z_Tk"))
    rows = read_weights(old)[name]
    for policy, expected in {"average": rows.mean(0), "nearest": rows[0]}.items():
        new = read_weights(_add(old, tmp_path / policy, policy).checkpoint)[name]
        assert torch.equal(new[:3], rows)
        torch.testing.assert_close(new[3], expected, atol=1e-6, rtol=0)


def test_moments_stay_with_their_rows_and_are_zero_for_the_new_one(tmp_path: Path) -> None:
    old = _checkpoint(tmp_path / "run")
    done = _add(old, tmp_path / "new")
    for part in ("exp_avg", "exp_avg_sq"):
        before, after = read_moments(old, part), read_moments(done.checkpoint, part)  # type: ignore[arg-type]
        for name in ("heads.bias", f"{GATE}.logits_ME"):
            assert torch.equal(after[name][:3, : before[name].shape[1]], before[name])
            assert after[name][3].count_nonzero() == 0
        name = "encoder.layers.1.feed_forward.pools.g1.w_out"
        assert torch.equal(after[name], before[name])
    assert read_manifest(done.checkpoint).optimizer["adam_step"] == 7


FROZEN = {"model": {"freeze": "body"}, "optimizer": {"weight_decay": 0.0}}


def test_with_a_frozen_body_adam_begins_anew_and_the_new_task_alone_is_trained(tmp_path: Path) -> None:
    old = _checkpoint(tmp_path / "run")
    done = _add(old, tmp_path / "new", overlay=FROZEN)
    manifest = read_manifest(done.checkpoint)
    trainable = {name for name, record in manifest.tensors.items() if record.kind == "trainable"}
    assert trainable == {"heads.weight", "heads.bias", f"{GATE}.logits_ME"}
    assert {record.kind for name, record in manifest.tensors.items() if name not in trainable} <= {"frozen", "buffer"}
    moments = read_moments(done.checkpoint, "exp_avg") | read_moments(done.checkpoint, "exp_avg_sq")
    assert moments.keys() == trainable
    assert not any(value.any() for value in moments.values())
    assert manifest.optimizer["adam_step"] == 0
    assert manifest.config["data"]["sampling"]["tasks"] == ["tone"]
    before, after = read_weights(old), read_weights(done.checkpoint)
    for name in before.keys() - trainable:
        assert torch.equal(before[name], after[name]), name
    for was, now in zip(_logits(old, (0, 1, 2)), _logits(done.checkpoint, (0, 1, 2)), strict=True):
        assert torch.equal(was, now)


def test_a_frozen_run_thaws_with_fresh_moments_when_its_task_is_removed_again(tmp_path: Path) -> None:
    frozen = _add(_checkpoint(tmp_path / "run"), tmp_path / "new", overlay=FROZEN).checkpoint
    thawed = remove_task(frozen, tmp_path / "less", "tone", overlay={"model": {"freeze": "none"}}).checkpoint
    manifest = read_manifest(thawed)
    assert {record.kind for record in manifest.tensors.values()} <= {"trainable", "buffer"}
    assert manifest.config["data"]["sampling"]["tasks"] is None
    pool = "encoder.layers.1.feed_forward.pools.g0.w_in"
    assert not read_moments(thawed, "exp_avg")[pool].any()
    assert torch.equal(read_weights(thawed)[pool], read_weights(frozen)[pool])


def test_a_fixed_table_gets_the_row_of_the_most_similar_task(tmp_path: Path) -> None:
    old = _checkpoint(tmp_path / "run", "fixed")
    done = _add(old, tmp_path / "new", like="score")
    table = read_weights(done.checkpoint)[f"{GATE}.table_MK"]
    assert table[3].tolist() == table[2].tolist()
    with pytest.raises(ConfigError, match=r"(?s)gate fixed has no router.*--policy nearest"):
        _add(old, tmp_path / "other", "router_only")


def test_layers_must_lose_experts_alike() -> None:
    tree = TaskGrouping.from_partitions(3, [[[0, 1, 2]], [[0, 1], [2]]])
    edit = removing(TASKS, tree, 2)
    with pytest.raises(ConfigError, match=r"(?s)lose a task group.*\[4, 2\] experts"):
        edit.num_experts(4, tree)
    assert removing(TASKS, tree, 0).num_experts(4, tree) == 4


def test_ids_of_groups_follow_the_canonical_order() -> None:
    tree = TaskGrouping.from_partitions(3, [[[0, 2], [1]]])
    assert removing(TASKS, tree, 0).group_origin == ((1, 0),)
    assert removing(TASKS, tree, 0).task_origin == (1, 2)
    assert adding(TASKS, tree, NEW, like=1).grouping.layers == (((0, 2), (1, 3)),)
    with pytest.raises(DataError, match="different"):
        adding(TASKS, tree, TASKS[0], like=1)
    with pytest.raises(ConfigError, match="last task"):
        removing(TaskSet(TASKS.specs[:1]), TaskGrouping.one_group(1, 1), 0)


def test_mixtures_sum_to_one_over_the_task_group() -> None:
    similarity = torch.tensor([0.5, 0.1, 0.9])
    for policy in ("average", "description", "nearest"):
        weights = mixture(policy, similarity, members=(0, 1), nearest=1)  # type: ignore[arg-type]
        assert weights is not None
        assert weights[2] == 0
        assert weights.sum() == pytest.approx(1)


def _tone_folder(folder: Path) -> Path:
    folder.mkdir()
    (folder / "task.json").write_text(
        json.dumps({"type": "classification", "labels": ["x", "y"], "metric": "accuracy", "description": "A topic?"})
    )
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text('{"text": "red", "label": 0}\n')
    return folder


def test_the_command_writes_a_run_that_can_be_resolved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = _checkpoint(tmp_path / "run")
    folder = _tone_folder(tmp_path / "tone")
    assert main_of("edit_tasks")([str(old), str(tmp_path / "new"), "--add", str(folder)]) == 0
    assert "tone joins the task groups of topic; policy nearest" in capsys.readouterr().out
    values = yaml.safe_load((tmp_path / "new" / "config.yaml").read_text())
    assert values["tasks"]["names"] == ["mood", "topic", "score", "tone"]
    assert values["tasks"]["folders"] == {"tone": str(folder)}
    assert values["structure"]["grouping"] == [[["mood", "topic", "tone"], ["score"]]]
    assert (values["run"]["name"], values["schedule"]["num_steps"]) == ("new", 200)
    assert resolve(str(tmp_path / "new" / "config.yaml")).model_dump() == values  # every key is there
    assert read_manifest(tmp_path / "new" / "checkpoints" / "step_0").config == values
    assert main_of("edit_tasks")([str(old), str(tmp_path / "new"), "--remove", "mood"]) == 2
    assert "would overwrite something" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        remove_task(tmp_path, tmp_path / "x", "mood")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.moe.expert_size=16", "model.moe.expert_size=None"),
        ("model.moe.experts_per_task_group=4", "model.moe.experts_per_task_group=None"),
        ("model.moe.gate.kind=token", "model.moe.gate.kind=task"),
        ("model.moe.num_experts=8", "model.moe.num_experts=4"),
        ("model.num_layers=1", "model.num_layers=2"),
        ("model.moe=null", "model.moe=a section"),
        ("model.conditional={}", "model.conditional=None"),
        ("schedule.num_steps=-1", "schedule.num_steps"),
        ("run.eval_everry=3", "eval_every"),
    ],
)
def test_values_that_the_new_run_cannot_have_are_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    old, folder = _checkpoint(tmp_path / "run"), _tone_folder(tmp_path / "tone")
    assert main_of("edit_tasks")([str(old), str(tmp_path / "new"), "--add", str(folder), override]) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "tone"]


def test_how_the_model_is_trained_may_change(tmp_path: Path) -> None:
    old = _checkpoint(tmp_path / "run")
    overlay = {
        "model": {"freeze": "embeddings", "dropout": 0.3, "moe": {"losses": {"z": 0.1}, "gate": {"noise": "normal"}}}
    }
    model = StoredModel.read(_add(old, tmp_path / "new", overlay=overlay).checkpoint).model
    assert (model.freeze, model.dropout) == ("embeddings", 0.3)
    assert model.moe is not None
    assert (model.moe.losses.z, model.moe.gate.noise) == (0.1, "normal")


def test_a_tensor_of_another_shape_than_the_model_s_is_refused(tmp_path: Path) -> None:
    old = _checkpoint(tmp_path / "run")
    manifest = json.loads((old / "manifest.json").read_text())
    manifest["config"]["model"]["moe"]["expert_size"] = 16
    (old / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"another shape(.|\n)*w_in \[2, 32, 16\]\n  expected: \[2, 16, 16\]"):
        _add(old, tmp_path / "new")


@pytest.mark.parametrize("option", ["--policy=nearest", "--like=mood", "--name=x"])
def test_a_removal_reads_no_option_of_an_addition(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main_of("edit_tasks")([str(tmp_path), str(tmp_path / "new"), "--remove", "mood", option])
    assert f"only --add reads {option.partition('=')[0]}" in capsys.readouterr().err


def test_a_run_whose_structure_was_learned_goes_on_with_what_it_has_found(tmp_path: Path) -> None:
    old = _checkpoint(tmp_path / "run")
    manifest = json.loads((old / "manifest.json").read_text())
    manifest["config"]["structure"] = {"learn": {"phases": 2}}
    (old / "manifest.json").write_text(json.dumps(manifest))
    for done in (_add(old, tmp_path / "added"), remove_task(old, tmp_path / "removed", "mood")):
        assert yaml.safe_load((done.folder / "config.yaml").read_text())["structure"]["learn"] is None
        assert read_manifest(done.checkpoint).config["structure"]["learn"] is None
