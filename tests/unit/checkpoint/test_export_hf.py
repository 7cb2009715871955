"""Exports are loaded by a fresh, isolated Python process in which distmoe cannot be imported."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from distmoe.checkpoint import hf
from distmoe.checkpoint.export_hf import export, write_export
from distmoe.checkpoint.export_tokenizer import read_tokenizer, write_tokenizer
from distmoe.checkpoint.hf.configuration_distmoe import DistmoeConfig
from distmoe.checkpoint.hf.modeling_distmoe import DistmoeForSequenceClassification
from distmoe.checkpoint.run_files import write_run_files
from distmoe.errors import CheckpointError
from distmoe.models.config import ModelConfig
from distmoe.models.layer_plan import routed_layers
from distmoe.models.multitask import MultiTaskEncoder
from distmoe.models.shape import EncoderShape
from distmoe.nn.conditional.config import ConditionalConfig
from distmoe.tasks import TaskGrouping
from distmoe.tokenization.word_tokenizer import build_word_tokenizer
from tests.unit.checkpoint.consumer import consume
from tests.unit.checkpoint.runs import write_run
from tests.unit.checkpoint.samples import conditional_configs, minilm_folder, states
from tests.unit.models.samples import GATES, TASKS, gate_config, make_batch, make_model, model_config, moe_config

PARTITION = [[0, 1], [2]]
BATCH = make_batch((7, 3, 5, 1), (0, 1, 2, 1), extra_padding=1)
ROBERTA = EncoderShape(
    vocab_size=50,
    pad_token_id=0,
    hidden_size=16,
    num_layers=2,
    num_heads=4,
    intermediate_size=32,
    max_positions=12,
    position_offset=2,
    num_token_types=1,
    activation="relu",
    norm="post",
    layer_norm_eps=1e-5,
)
EVALUATION = {"split": "test", "macro": 0.5, "tasks": {"mood": {"metric": "accuracy", "score": 0.75, "examples": 8}}}


def _cases() -> dict[str, tuple[ModelConfig, EncoderShape | None]]:
    """Every gate, and every other choice that the modelling code must repeat."""
    cases: dict[str, tuple[ModelConfig, EncoderShape | None]] = {
        f"gate_{gate}": (model_config(moe_config(gate, layers="all")), None) for gate in GATES
    }
    for gate in ("task_embedding", "task_description"):
        moe = moe_config(layers="all", gate=gate_config(gate, router="linear"))
        cases[f"gate_{gate}_linear"] = (model_config(moe), None)
    top_2 = moe_config("hybrid", layers="all", top_k=2, combine="renorm", shared_expert=True)
    return cases | {
        "top_2_shared_pre_norm_mean": (model_config(top_2, norm="pre", pooling="mean"), None),
        "raw": (model_config(moe_config("per_task", combine="raw", top_k=2)), None),
        "dense": (model_config(None), None),
        "whole_layers": (model_config(moe_config(layers="all", unit="block", experts_per_task_group=1)), None),
        "pools_of_two_sizes": (model_config(moe_config("token", experts_per_task=2)), None),
        **{f"conditional_{name}": (config, None) for name, config in conditional_configs().items()},
        "roberta": (model_config(moe_config("token")), ROBERTA),
    }


def _trained(config: ModelConfig, shape: EncoderShape | None) -> MultiTaskEncoder:
    """A model in which no parameter has a special value: fresh task terms of gates are zero."""
    model = make_model(config, partition=PARTITION, shape=shape)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def _write(folder: Path, model: MultiTaskEncoder, config: ModelConfig, **changes: Any) -> Path:
    layers = len(routed_layers(config.moe, model.shape.num_layers))
    grouping = TaskGrouping.uniform(3, layers, PARTITION)
    values: dict[str, Any] = {"tokenizer_folder": None, "metrics": EVALUATION} | changes
    return write_export(folder, model, config=config, tasks=TASKS, grouping=grouping, **values)


@pytest.fixture(scope="module")
def consumed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[MultiTaskEncoder, Path, dict[str, Any]]]:
    """Per case: the training model, its export, and what the isolated process made of it."""
    folder = tmp_path_factory.mktemp("exports")
    models, jobs = {}, []
    inputs = {
        "input_ids": BATCH.input_ids_BS,
        "attention_mask": BATCH.attention_mask_BS.long(),
        "token_type_ids": BATCH.token_type_ids_BS,
    }
    calls = [{"task_ids": BATCH.task_ids_B}, {"task": ["mood", "topic", "score", "topic"]}]
    for name, (config, shape) in _cases().items():
        models[name] = _trained(config, shape)
        jobs.append(
            {"folder": str(_write(folder / name, models[name], config)), "model_inputs": inputs, "calls": calls}
        )
    jobs[0]["save_to"] = str(folder / "saved_again")
    jobs[0]["calls"] = [
        *calls,
        {"task": "topic"},
        {"task_ids": 2},
        {"task": "mod"},
        {},
        {"task": "mood", "task_ids": 0},
        {"task": ["mood", "topic"]},
        {"task_ids": 3},
    ]
    jobs.append({"folder": str(folder / "gate_token"), "model_inputs": inputs, "calls": [{}],
                 "options": {"default_task": "topic"}})  # fmt: skip
    without_mask = {"input_ids": BATCH.input_ids_BS}
    jobs.append({"folder": str(folder / "roberta"), "model_inputs": without_mask, "calls": calls})
    results = consume(jobs, folder)
    answers = {name: (models[name], folder / name, result) for name, result in zip(models, results, strict=False)}
    answers["default_task"] = (models["gate_token"], folder / "gate_token", results[-2])
    answers["without_mask"] = (models["roberta"], folder / "roberta", results[-1])
    return answers


@pytest.mark.parametrize("name", [*_cases(), "without_mask"])
def test_logits_of_the_export_are_those_of_the_training_model(consumed: Any, name: str) -> None:
    model, _, result = consumed[name]
    with torch.no_grad():
        expected_BC = model(BATCH).logits_BC
    assert expected_BC.isfinite().sum() == 2 + 3 + 1 + 3
    for answer_BC in result["answers"][:2]:
        torch.testing.assert_close(answer_BC, expected_BC, atol=1e-5, rtol=0)
    assert (result["missing"], result["unexpected"]) == ([], [])


def test_a_single_task_gets_exactly_its_outputs(consumed: Any) -> None:
    _, _, result = consumed["gate_token"]
    all_rows, topic, score = result["answers"][0], result["answers"][2], result["answers"][3]
    assert topic.shape == (4, 3)
    assert score.shape == (4, 1)
    torch.testing.assert_close(topic[[1, 3]], all_rows[[1, 3]], atol=1e-5, rtol=0)
    torch.testing.assert_close(score[2], all_rows[2, :1], atol=1e-5, rtol=0)


def test_wrong_tasks_are_refused_with_the_names_of_the_right_ones(consumed: Any) -> None:
    unknown, none, both, rows, number = consumed["gate_token"][2]["answers"][4:]
    assert unknown == "unknown task 'mod'; this model has 'mood', 'topic', 'score'"
    assert none == "which task? pass task=..., one of 'mood', 'topic', 'score'"
    assert both == "give either task or task_ids, not both"
    assert rows == "2 tasks for 4 rows; give one, or one per row"
    assert number == "task ids must be in 0..2 (mood, topic, score); got [3]"


def test_a_default_task_makes_a_single_task_model_with_its_labels(consumed: Any) -> None:
    _, _, result = consumed["default_task"]
    torch.testing.assert_close(result["answers"][0], consumed["gate_token"][2]["answers"][2], atol=1e-5, rtol=0)
    assert result["id2label"] == {0: "a", 1: "b", 2: "c"}


def test_a_task_per_row_may_stand_in_an_array() -> None:
    tasks = [{"name": name, "kind": "classification", "num_outputs": n, "labels": list("abc")[:n]}
             for name, n in (("two", 2), ("three", 3))]  # fmt: skip
    model = DistmoeForSequenceClassification(DistmoeConfig(hidden_size=8, num_hidden_layers=1, tasks=tasks)).eval()
    ids_BS = torch.tensor([[5, 6], [7, 8]])
    wanted_BC = model(ids_BS, task_ids=torch.tensor([0, 1])).logits
    assert wanted_BC.shape == (2, 3)
    for call in ({"task_ids": np.array([0, 1])}, {"task": np.array(["two", "three"])}, {"task": ("two", "three")}):
        assert torch.equal(model(ids_BS, **call).logits, wanted_BC)
    assert model(ids_BS, task_ids=np.int64(0)).logits.shape == (2, 2)


def test_base_model_gives_the_training_model_s_states(consumed: Any) -> None:
    model, _, result = consumed["gate_token"]
    name, hidden_BSD, pooled_BD, num_states = result["base"]
    expected_hidden_BSD, expected_pooled_BD = states(model, BATCH)
    real = BATCH.attention_mask_BS
    assert (name, num_states) == ("DistmoeModel", 3)
    torch.testing.assert_close(hidden_BSD[real], expected_hidden_BSD[real], atol=1e-5, rtol=0)
    torch.testing.assert_close(pooled_BD, expected_pooled_BD, atol=1e-5, rtol=0)


def test_an_export_can_be_saved_again_and_fine_tuned(consumed: Any) -> None:
    _, _, result = consumed["gate_token"]
    assert torch.equal(result["after_saving"], result["answers"][0])
    assert result["loss"] > 0
    assert result["without_gradient"] == []


def test_folder_holds_config_task_table_code_and_card(consumed: Any) -> None:
    _, folder, _ = consumed["gate_task"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "configuration_distmoe.py",
        "model.safetensors",
        "modeling_distmoe.py",
    ]
    values = json.loads((folder / "config.json").read_text())
    assert [(task["name"], task["kind"], task["num_outputs"], task["labels"]) for task in values["tasks"]] == [
        ("mood", "classification", 2, ["bad", "good"]),
        ("topic", "classification", 3, ["a", "b", "c"]),
        ("score", "regression", 1, []),
    ]
    assert values["routed_layers"][0]["task_groups"] == PARTITION
    card = (folder / "README.md").read_text()
    assert "| mood | accuracy | 0.7500 | 8 |" in card
    assert 'task="mood"' in card
    assert "layer 1: mood, topic / score" in card


def test_modelling_code_imports_nothing_of_distmoe() -> None:
    for path in Path(hf.__file__).parent.glob("*_distmoe.py"):
        imports = [line for line in path.read_text().splitlines() if line.startswith(("import", "from"))]
        assert imports
        assert not any("import distmoe" in line or "from distmoe" in line for line in imports)


def test_tokenizer_is_written_with_its_class_the_model_s_length_and_padding_behind_texts(tmp_path: Path) -> None:
    config, shape = model_config(moe_config()), replace(ROBERTA, vocab_size=30522)
    AutoTokenizer.from_pretrained(minilm_folder(), padding_side="left").save_pretrained(tmp_path / "left")
    out = _write(tmp_path / "out", _trained(config, shape), config, tokenizer_folder=tmp_path / "left")
    values = json.loads((out / "tokenizer_config.json").read_text())
    assert values["tokenizer_class"].startswith("Bert")
    assert values["model_max_length"] == config.max_positions
    assert values["padding_side"] == "right"
    assert (out / "tokenizer.json").is_file()


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused_with_both_numbers(tmp_path: Path) -> None:
    config = model_config(moe_config())
    with pytest.raises(CheckpointError, match=r"(?s)got:      30522 tokens.*expected: at most 50"):
        _write(tmp_path / "out", _trained(config, None), config, tokenizer_folder=minilm_folder())
    assert not list(tmp_path.iterdir())


def test_a_folder_without_tokenizer_is_refused_and_leaves_no_export(tmp_path: Path) -> None:
    config = model_config(moe_config())
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"(?s)tokenizer of the run.*--tokenizer"):
        _write(tmp_path / "out", _trained(config, None), config, tokenizer_folder=tmp_path / "empty")
    assert not (tmp_path / "out").exists()


def _run_with_checkpoint(run: Path, config: ModelConfig, model: MultiTaskEncoder, **changes: Any) -> Path:
    """A run's folder as training leaves it, with one checkpoint."""
    checkpoint = write_run(run, config, model, metrics=EVALUATION | {"split": "validation"}, **changes)
    (run / "result.json").write_text(json.dumps({"test_step": 7, "test": EVALUATION}))
    return checkpoint


@pytest.mark.parametrize("gate", ["hybrid", "fixed", "task_description"])
def test_export_of_a_checkpoint_holds_the_trained_weights(tmp_path: Path, gate: str) -> None:
    config = model_config(moe_config(gate))
    model = _trained(config, ROBERTA)  # a shape that the configuration does not give
    checkpoint = _run_with_checkpoint(tmp_path / "run", config, model)
    out = export(checkpoint, tmp_path / "out")
    expected = _write(tmp_path / "direct", model, config)
    got, wanted = load_file(out / "model.safetensors"), load_file(expected / "model.safetensors")
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    assert (out / "config.json").read_text() == (expected / "config.json").read_text()
    assert (out / "tokenizer.json").is_file()
    card = (out / "README.md").read_text()
    assert "# trial, step 7" in card
    assert "| task | metric | validation | examples |" in card
    assert "| task | metric | test | examples |" in card


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    model = _trained(model_config(moe_config()), None)
    other = model_config(moe_config(num_experts=8))
    checkpoint = _run_with_checkpoint(tmp_path, other, model)
    with pytest.raises(CheckpointError, match=r"(?s)not those of the model.*gate.logits_ME \[3, 4\]"):
        export(checkpoint, tmp_path / "out")


def test_a_checkpoint_that_was_copied_alone_needs_its_tokenizer_named(tmp_path: Path) -> None:
    config = model_config(moe_config())
    checkpoint = _run_with_checkpoint(tmp_path / "run", config, _trained(config, None))
    alone = tmp_path / "elsewhere" / "deep" / "step_7"
    shutil.copytree(checkpoint, alone)
    shutil.copy(tmp_path / "run" / "shape.json", alone)
    with pytest.raises(CheckpointError, match=r"(?s)tokenizer of .*step_7 was not found.*--tokenizer"):
        export(alone, tmp_path / "out")
    tokenizer = tmp_path / "run" / "tokenizer"
    assert (export(alone, tmp_path / "out", tokenizer=tokenizer) / "tokenizer.json").is_file()


def test_a_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        export(tmp_path / "nothing", tmp_path / "out")


def test_a_control_with_random_tasks_is_refused(tmp_path: Path) -> None:
    config = model_config(conditional=ConditionalConfig.model_validate({"condition_on": "random_task"}))
    with pytest.raises(CheckpointError, match="condition_on=random_task"):
        _write(tmp_path / "out", _trained(config, None), config)


def test_only_an_older_export_is_overwritten(tmp_path: Path) -> None:
    config = model_config(moe_config())
    model = _trained(config, None)
    _write(tmp_path / "out", model, config)
    (tmp_path / "out" / "README.md").write_text("old")
    _write(tmp_path / "out", model, config)
    assert (tmp_path / "out" / "README.md").read_text() != "old"
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match=r"(?s)overwrite.*precious with 1 entries"):
        _write(tmp_path / "precious", model, config)
    assert (tmp_path / "precious" / "thesis.tex").read_text() == "years of work"


def test_the_embedded_word_tokenizer_survives_run_folder_and_export(tmp_path: Path) -> None:
    tokenizer = build_word_tokenizer(["red", "green", "blue"])
    write_run_files(tmp_path / "run", shape=ROBERTA, tokenizer=tokenizer)
    (tmp_path / "out").mkdir()
    read = read_tokenizer(tmp_path / "run" / "tokenizer", vocab_size=len(tokenizer))
    write_tokenizer(read, tmp_path / "out", max_length=9)
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert again("green red", "blue pink")["input_ids"] == tokenizer("green red", "blue pink")["input_ids"]
    assert again("green", "blue")["token_type_ids"] == [0, 0, 0, 1, 1]
    assert again.model_max_length == 9
