"""A task comes to a trained decoder, or leaves it: the others' logits stay bit for bit."""

from pathlib import Path

import pytest
import torch

from distmoe.checkpoint.consolidate import read_weights
from distmoe.checkpoint.edit_tasks import add_task, remove_task
from distmoe.checkpoint.stored_model import StoredModel
from distmoe.errors import ConfigError
from distmoe.models.decoder_config import DecoderConfig
from distmoe.models.generation import Prompt, generate
from distmoe.tasks import TaskSpec
from tests.unit.checkpoint.runs import write_run
from tests.unit.checkpoint.test_export_decoder import PARTITION, routed, trained
from tests.unit.models.decoder_samples import TASKS, decoder_config, logits_of, token_batch

NEW = TaskSpec(name="ode", kind="language_modeling", metric="inverse_perplexity", description="Praise, in verse.")


def checkpoint_of(folder: Path, gate: str, head: str) -> Path:
    config = decoder_config(routed(gate), decoder=DecoderConfig(num_kv_heads=2, head=head))
    return write_run(folder, config, trained(config), tasks=TASKS, partition=PARTITION)


def add(checkpoint: Path, out: Path, spec: TaskSpec = NEW):
    return add_task(checkpoint, out, spec, task_folder=out.parent / spec.name, policy="average", like="poem")


@pytest.mark.parametrize(("gate", "head"), [("task", "per_task"), ("token", "tied"), ("per_task", "shared")])
def test_what_the_other_tasks_compute_does_not_change_by_a_bit(tmp_path, gate, head):
    old = checkpoint_of(tmp_path / "run", gate, head)
    done = add(old, tmp_path / "added")
    assert (done.tasks.names, done.like) == ((*TASKS.names, "ode"), "poem")
    batch = token_batch((7, 3, 5), (0, 1, 2))
    before, model = logits_of(StoredModel.read(old).rebuild(), batch), StoredModel.read(done.checkpoint).rebuild()
    assert torch.equal(logits_of(model, batch), before)
    assert len(generate(model, [Prompt([3, 1], 3)], max_new_tokens=2)[0]) == 2
    again = remove_task(done.checkpoint, tmp_path / "again", "ode").checkpoint
    assert read_weights(again).keys() == read_weights(old).keys()
    assert all(torch.equal(read_weights(again)[name], value) for name, value in read_weights(old).items())


def test_without_a_task_its_head_goes_and_the_others_move_up(tmp_path):
    old = checkpoint_of(tmp_path / "run", "task", "per_task")
    done = remove_task(old, tmp_path / "less", "sum")
    before = logits_of(StoredModel.read(old).rebuild(), token_batch((7, 3), (1, 2)))
    after = logits_of(StoredModel.read(done.checkpoint).rebuild(), token_batch((7, 3), (0, 1)))
    assert torch.equal(after, before)
    weights, new = read_weights(old), read_weights(done.checkpoint)
    assert torch.equal(new["heads.weight_MVD"], weights["heads.weight_MVD"][1:])


def test_a_task_of_classes_cannot_join_a_decoder(tmp_path):
    old = checkpoint_of(tmp_path / "run", "task", "tied")
    classes = TaskSpec(name="tone", kind="classification", metric="accuracy", labels=("a", "b"))
    with pytest.raises(ConfigError, match="tone"):
        add(old, tmp_path / "added", classes)
    assert not (tmp_path / "added").exists()
