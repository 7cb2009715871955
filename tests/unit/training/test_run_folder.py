import json
import logging
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml

from distmoe.checkpoint import folders
from distmoe.checkpoint.manifest import MANIFEST_NAME
from distmoe.config import apply_overrides, build
from distmoe.errors import CheckpointError, ConfigError
from distmoe.training.config import RunConfig
from distmoe.training.run_folder import RESULT_FILE, RunFolder, claim, differences, open_run, refuse_ended


def config(root: Path, *overrides: str) -> RunConfig:
    return build(RunConfig, apply_overrides({"run": {"name": "r", "output_dir": str(root)}}, overrides))


def newest(folder: Path) -> Path | None:
    return max(folder.glob("step_*"), default=None)


def started(root: Path, *, step: int | None = None) -> Path:
    """A run folder as an interrupted run leaves it."""
    folder = open_run(config(root), resume="auto", latest=newest)
    claim(folder, config(root), step=0, resume="auto")
    folder.metrics.write_text("".join(json.dumps({"step": s, "loss": 1.0}) + "\n" for s in (10, 20, 30)))
    if step is not None:
        (folder.checkpoints / f"step_{step}").mkdir()
    return folder.path


def test_auto_starts_fresh_in_a_new_folder(tmp_path: Path) -> None:
    folder = open_run(config(tmp_path), resume="auto", latest=newest)
    assert folder.resume_from is None
    assert not folder.path.exists()
    claim(folder, config(tmp_path), step=0, resume="auto")
    assert (folder.path / "config.yaml").is_file()


def test_auto_goes_on_from_the_newest_checkpoint_and_drops_later_metrics(tmp_path: Path) -> None:
    path = started(tmp_path, step=20)
    folder = open_run(config(tmp_path), resume="auto", latest=newest)
    assert folder.resume_from == path / "checkpoints" / "step_20"
    claim(folder, config(tmp_path), step=20, resume="auto")
    assert [json.loads(line)["step"] for line in folder.metrics.read_text().splitlines()] == [10, 20]
    assert (path / "checkpoints" / "step_20").is_dir()


def test_going_back_sets_aside_later_checkpoints_with_the_log_that_belongs_to_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = started(tmp_path)
    for step in (10, 20, 30):
        (path / "checkpoints" / f"step_{step}").mkdir()
        (path / "checkpoints" / f"step_{step}" / MANIFEST_NAME).touch()
    folder = open_run(config(tmp_path), resume=str(path / "checkpoints" / "step_10"), latest=newest)
    with caplog.at_level(logging.WARNING):
        claim(folder, config(tmp_path), step=10, resume="path")
    assert folders.steps(folder.checkpoints) == [folder.resume_from]
    [aside] = tmp_path.glob("r.old-*")
    assert list(folders.by_step(aside / "checkpoints")) == [20, 30]
    assert [json.loads(line)["step"] for line in folder.metrics.read_text().splitlines()] == [10]
    assert [json.loads(line)["step"] for line in (aside / "metrics.jsonl").read_text().splitlines()] == [10, 20, 30]
    assert f"goes back to step 10: step_20, step_30 moved to {aside}" in caplog.text


def test_going_on_from_the_newest_checkpoint_sets_nothing_aside(tmp_path: Path) -> None:
    path = started(tmp_path, step=20)
    (path / "checkpoints" / "step_20" / MANIFEST_NAME).touch()
    folder = open_run(config(tmp_path), resume="auto", latest=folders.latest)
    claim(folder, config(tmp_path), step=20, resume="auto")
    assert folders.latest(folder.checkpoints) == folder.resume_from
    assert [child.name for child in tmp_path.iterdir()] == ["r"]


def test_a_path_into_the_own_run_does_not_get_round_its_configuration(tmp_path: Path) -> None:
    path = started(tmp_path, step=20)
    with pytest.raises(ConfigError, match=r"(?s)another configuration.*max_length=32.*max_length=128"):
        open_run(config(tmp_path, "data.max_length=32"), resume=str(path / "checkpoints" / "step_20"), latest=newest)


def test_an_older_run_without_a_checkpoint_is_moved_aside_not_deleted(tmp_path: Path) -> None:
    started(tmp_path)
    folder = open_run(config(tmp_path), resume="auto", latest=newest)
    claim(folder, config(tmp_path), step=0, resume="auto")
    assert not folder.metrics.exists()
    assert [len(path.read_text().splitlines()) for path in tmp_path.glob("r.old-*/metrics.jsonl")] == [3]


def test_never_moves_the_older_run_aside(tmp_path: Path) -> None:
    started(tmp_path, step=20)
    folder = open_run(config(tmp_path, "data.max_length=32"), resume="never", latest=newest)
    claim(folder, config(tmp_path, "data.max_length=32"), step=0, resume="never")
    assert folder.resume_from is None
    assert len(list(tmp_path.glob("r.old-*/checkpoints/step_20"))) == 1


def test_never_discards_nothing_that_this_launch_has_saved(tmp_path: Path, monkeypatch) -> None:
    """First start, dead before it claimed the folder, second start, restart after a checkpoint, another launch."""
    old = started(tmp_path, step=20)
    monkeypatch.setenv("DISTMOE_LAUNCH", "one")
    for _ in range(2):
        folder = open_run(config(tmp_path), resume="never", latest=newest)
        assert folder.resume_from is None
    claim(folder, config(tmp_path), step=0, resume="never")
    assert open_run(config(tmp_path), resume="never", latest=newest).resume_from is None
    (old / "checkpoints" / "step_10").mkdir()
    assert open_run(config(tmp_path), resume="never", latest=newest).resume_from == old / "checkpoints" / "step_10"
    monkeypatch.setenv("DISTMOE_LAUNCH", "two")
    assert open_run(config(tmp_path), resume="never", latest=newest).resume_from is None


def test_a_restart_leaves_the_checkpoint_it_began_with_only_for_one_of_its_own(tmp_path: Path, monkeypatch) -> None:
    start = tmp_path / "other" / "checkpoints" / "step_5"
    start.mkdir(parents=True)
    monkeypatch.setenv("DISTMOE_LAUNCH", "one")
    folder = open_run(config(tmp_path), resume=str(start), latest=newest)
    claim(folder, config(tmp_path), step=5, resume=str(start))
    assert open_run(config(tmp_path), resume=str(start), latest=newest).resume_from == start
    own = folder.checkpoints / "step_10"
    own.mkdir()
    assert open_run(config(tmp_path), resume=str(start), latest=newest).resume_from == own
    (folder.checkpoints / "step_20").mkdir()
    (folder.checkpoints / "step_20" / MANIFEST_NAME).touch()
    monkeypatch.setenv("DISTMOE_LAUNCH", "two")  # asked to go back inside its own folder
    folder = open_run(config(tmp_path), resume=str(own), latest=newest)
    assert folder.resume_from == own
    claim(folder, config(tmp_path), step=10, resume=str(own))
    newer = folder.checkpoints / "step_15"
    newer.mkdir()
    assert open_run(config(tmp_path), resume=str(own), latest=newest).resume_from == newer


def test_another_configuration_is_refused_with_both_values_and_nothing_is_lost(tmp_path: Path) -> None:
    path = started(tmp_path, step=20)
    before = sorted(file.name for file in path.iterdir())
    with pytest.raises(ConfigError, match=r"(?s)another configuration.*max_length=32.*max_length=128.*--resume never"):
        open_run(config(tmp_path, "data.max_length=32"), resume="auto", latest=newest)
    assert sorted(file.name for file in path.iterdir()) == before
    sizes = ("hidden_size=32", "num_layers=2", "num_heads=2", "intermediate_size=64", "max_positions=32")
    rates = ("dropout=0.2", "attention_dropout=0.2", "init_std=0.5")
    many = [f"model.{change}" for change in (*sizes, *rates)]
    with pytest.raises(ConfigError) as caught:
        open_run(config(tmp_path, *many), resume="auto", latest=newest)
    assert str(caught.value.got).endswith(", and 2 more")


def test_a_run_written_before_a_key_existed_goes_on_with_its_default(tmp_path: Path) -> None:
    path = started(tmp_path, step=20)
    saved = yaml.safe_load((path / "config.yaml").read_text())
    del saved["data"]["sampling"]["temperature"]
    (path / "config.yaml").write_text(yaml.safe_dump(saved))
    assert open_run(config(tmp_path), resume="auto", latest=newest).resume_from is not None
    with pytest.raises(ConfigError, match="temperature=2"):
        open_run(config(tmp_path, "data.sampling.temperature=2"), resume="auto", latest=newest)


def test_a_key_that_no_longer_exists_is_a_difference(tmp_path: Path) -> None:
    path = started(tmp_path, step=20)
    saved = yaml.safe_load((path / "config.yaml").read_text()) | {"forgotten": {"key": 1}}
    (path / "config.yaml").write_text(yaml.safe_dump(saved))
    with pytest.raises(ConfigError, match="forgotten"):
        open_run(config(tmp_path), resume="auto", latest=newest)


def test_keys_that_change_only_what_is_written_may_differ(tmp_path: Path) -> None:
    started(tmp_path, step=20)
    changed = config(tmp_path, "run.log_every=3", "checkpoint.keep_last=5", "run.report=false")
    assert open_run(changed, resume="auto", latest=newest).resume_from is not None


def test_must_insists_on_a_checkpoint(tmp_path: Path) -> None:
    started(tmp_path)
    with pytest.raises(CheckpointError, match="no complete checkpoint to resume from"):
        open_run(config(tmp_path), resume="must", latest=newest)


def test_the_path_of_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"(?s)does not exist.*--resume nowhere"):
        open_run(config(tmp_path), resume="nowhere", latest=newest)


def test_a_checkpoint_of_another_run_starts_a_new_folder(tmp_path: Path) -> None:
    path = started(tmp_path / "first", step=20)
    folder = open_run(config(tmp_path / "second"), resume=str(path / "checkpoints" / "step_20"), latest=newest)
    claim(folder, config(tmp_path / "second"), step=20, resume="path")
    assert not folder.metrics.exists()
    assert folder.checkpoints.is_dir()


def test_a_start_behind_the_end_of_the_schedule_is_refused_unless_the_run_itself_goes_on(tmp_path: Path) -> None:
    checkpoint = started(tmp_path / "first", step=20) / "checkpoints" / "step_20"
    for root, num_steps, refused in (("second", 20, True), ("second", 21, False), ("first", 20, False)):
        wanted = config(tmp_path / root, f"schedule.num_steps={num_steps}")
        folder = RunFolder(tmp_path / root / "r", checkpoint)
        with pytest.raises(ConfigError) if refused else nullcontext() as caught:
            refuse_ended(folder, wanted, step=20)
        if caught is not None:
            assert caught.value.got == "a checkpoint of step 20, schedule.num_steps=20"


def test_a_run_that_has_ended_without_these_shifts_is_refused_and_one_that_goes_on_may_add_them(tmp_path: Path) -> None:
    path = started(tmp_path, step=20)
    asks = config(tmp_path, "data.shifts={drop: [0.2], noise: [0.1]}")
    assert open_run(asks, resume="auto", latest=newest).resume_from == path / "checkpoints" / "step_20"
    (path / RESULT_FILE).write_text(json.dumps({"shifts": {"drop_0.2": {}}}))
    assert open_run(config(tmp_path, "data.shifts.drop=[0.2]"), resume="auto", latest=newest).finished
    with pytest.raises(ConfigError, match=r"ended without scores[\s\S]*got: +noise_0.1\n[\s\S]*step_20 --shifts"):
        open_run(asks, resume="auto", latest=newest)


def test_a_run_with_a_result_is_finished(tmp_path: Path) -> None:
    path = started(tmp_path, step=20)
    (path / RESULT_FILE).write_text("{}")
    assert open_run(config(tmp_path), resume="auto", latest=newest).finished


def test_differences_name_dotted_keys() -> None:
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == [("a.c", 2, 3)]
    assert differences({"run": {"log_every": 1}}, {"run": {"log_every": 2}}) == []
