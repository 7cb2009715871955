"""Sub-networks are loaded by a process that knows transformers only, and give the full model's logits."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from distmoe.checkpoint.export_task import export_task, write_task_export
from distmoe.checkpoint.folding import folded
from distmoe.errors import CheckpointError, DataError
from distmoe.models.config import ModelConfig
from distmoe.models.layer_plan import routed_layers
from distmoe.models.shape import EncoderShape
from distmoe.moe.layer import RoutedFeedForward
from distmoe.tasks import TaskGrouping
from distmoe.tokenization.word_tokenizer import build_word_tokenizer
from tests.unit.checkpoint.consumer import consume
from tests.unit.checkpoint.runs import PARTITION, trained, write_run
from tests.unit.checkpoint.samples import conditional_configs
from tests.unit.checkpoint.tools import main_of
from tests.unit.models.samples import GATES, TASKS, gate_config, make_batch, model_config, moe_config

ROBERTA = EncoderShape(
    vocab_size=50,
    pad_token_id=0,
    hidden_size=16,
    num_layers=2,
    num_heads=4,
    intermediate_size=32,
    max_positions=12,
    position_offset=1,
    num_token_types=1,
    activation="relu",
    norm="post",
    layer_norm_eps=1e-5,
)
CONDITIONAL = conditional_configs()
STOCK: dict[str, tuple[ModelConfig, EncoderShape | None]] = {
    "task": (model_config(moe_config("task")), None),
    "fixed": (model_config(moe_config("fixed", layers="all")), None),
    "roberta": (model_config(moe_config("task", layers="all")), ROBERTA),
    "raw weights in the output matrix": (model_config(moe_config("task", combine="raw")), None),
    "two half experts": (model_config(moe_config("task", top_k=2, combine="renorm")), None),
    "every layer of another width": (model_config(moe_config("task", layers="all", shared_expert=True)), None),
    "dense": (model_config(None), None),
    "conditional norms and alignment": (CONDITIONAL["norm_and_alignment"], None),
    "conditional norms everywhere": (CONDITIONAL["norm_everywhere"], None),
    "whole layers": (model_config(moe_config("task", unit="block", experts_per_task_group=1)), None),
}
OWN_CODE: dict[str, tuple[ModelConfig, EncoderShape | None, str]] = {
    "mean pooling": (model_config(moe_config("task"), pooling="mean"), None, "pooling is mean"),
    "pre norm": (model_config(moe_config("task"), norm="pre"), None, "the encoder is pre-LN"),
    "shared expert": (
        model_config(moe_config("task", shared_expert=True)),
        None,
        r"layer 1: 64; dense: 32\): the stock classes have one width",
    ),
    "two whole experts": (
        model_config(moe_config("task", top_k=2, expert_size=32, combine="raw")),
        None,
        "layer 1: 64; dense: 32",
    ),
    **{
        f"gate {gate}": (
            model_config(moe_config(gate, layers="all", shared_expert=gate == "hybrid")),
            None,
            f"gate {gate} chooses experts by (token|sequence) at layers 0, 1",
        )
        for gate in GATES
        if gate not in ("task", "fixed")
    },
    "linear router": (
        model_config(moe_config(gate=gate_config("task_embedding", router="linear"), top_k=2, combine="raw")),
        None,
        "gate task_embedding chooses experts by token",
    ),
    "conditional attention": (CONDITIONAL["all"], None, "adds a bias to the scores of layers 1: stock attention"),
    "conditional bottleneck": (CONDITIONAL["tables"], None, "bottlenecks stand behind layers 1: the stock classes"),
    "conditional everywhere": (CONDITIONAL["all_everywhere_pre_norm"], None, "the scores of layers 0, 1"),
    "one task for all": (CONDITIONAL["one_task"], None, "adds a bias"),
    "published base": (CONDITIONAL["repo_base"], None, "the scores of layers 0, 1"),
    "published large": (CONDITIONAL["repo_large"], None, "a chain of adapters over all layers"),
}
CASES = STOCK | {name: value[:2] for name, value in OWN_CODE.items()}
# One task per case, in turn, and all three of the first: loading models is what costs.
PAIRS = [(name, index % 3) for index, name in enumerate(CASES)] + [("task", 1), ("task", 2)]
EXPORTS = dict(PAIRS[: len(CASES)])  # case -> its task
PIPELINES = ("mean pooling", "pre norm", "shared expert")  # with own code, and one task each


def _write(
    folder: Path, config: ModelConfig, shape: EncoderShape | None, task_id: int, tokenizer: Path | None = None
) -> Any:
    model = trained(config, shape)
    layers = len(routed_layers(config.moe, model.shape.num_layers))
    grouping = TaskGrouping.uniform(3, layers, PARTITION)
    return write_task_export(folder, model, config=config, tasks=TASKS, grouping=grouping, task_id=task_id,
                             tokenizer_folder=tokenizer, metrics={}, title="a title")  # fmt: skip


@pytest.fixture(scope="module")
def consumed(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], tuple[Any, dict[str, Any]]]:
    """Per case and task: the export, and what the isolated process made of it."""
    folder = tmp_path_factory.mktemp("tasks")
    build_word_tokenizer(["red", "green", "blue"]).save_pretrained(folder / "tokenizer")
    exports: dict[tuple[str, int], Any] = {}
    jobs = []
    for name, task_id in PAIRS:
        config, shape = CASES[name]
        batch = make_batch(task_ids=(task_id,) * 4, extra_padding=1)
        tokenizer = folder / "tokenizer" if name in PIPELINES else None
        done = exports[name, task_id] = _write(folder / f"{len(jobs)}", config, shape, task_id, tokenizer)
        inputs = {
            "input_ids": batch.input_ids_BS,
            "attention_mask": batch.attention_mask_BS.long(),
            "token_type_ids": batch.token_type_ids_BS * (shape is None),  # RoBERTa has one segment
        }
        jobs.append({"folder": str(done.folder), "model_inputs": inputs, "calls": [{}]})
        if tokenizer is not None:
            jobs[-1]["texts"] = {"text": "red blue"} | ({"text_pair": "green"} if TASKS[task_id].pair else {})
    return {key: (done, result) for (key, done), result in zip(exports.items(), consume(jobs, folder), strict=True)}


@pytest.mark.parametrize(("name", "task_id"), PAIRS)
def test_logits_of_a_sub_network_are_those_of_the_full_model(consumed: Any, name: str, task_id: int) -> None:
    config, shape = CASES[name]
    done, result = consumed[name, task_id]
    with torch.no_grad():
        logits_BC = trained(config, shape)(make_batch(task_ids=(task_id,) * 4, extra_padding=1)).logits_BC
    expected_BC = logits_BC[:, : TASKS[task_id].num_outputs]
    torch.testing.assert_close(result["answers"][0], expected_BC, atol=1e-5, rtol=0)
    assert (result["missing"], result["unexpected"]) == ([], [])
    assert result["class"].endswith(done.architecture)
    assert result["id2label"] == dict(enumerate(TASKS[task_id].labels or ("score",)))


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_names_the_classes_and_leaves_numbers_as_they_are(consumed: Any, name: str) -> None:
    spec, result = TASKS[EXPORTS[name]], consumed[name, EXPORTS[name]][1]
    logits_C = result["pipeline logits"]
    scores_C = logits_C.softmax(0) if spec.labels else logits_C
    found = {row["label"]: row["score"] for row in result["pipeline"]}
    expected = dict(zip(spec.labels or [spec.name], scores_C.tolist(), strict=True))
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", STOCK)
def test_a_stock_class_is_written_without_code(consumed: Any, name: str) -> None:
    done, result = consumed[name, EXPORTS[name]]
    family = "Roberta" if name == "roberta" else "Bert"
    assert result["class"] == f"transformers.{family}ForSequenceClassification"
    assert not list(done.folder.glob("*.py"))
    assert "trust_remote_code" not in (done.folder / "README.md").read_text()


@pytest.mark.parametrize("name", OWN_CODE)
def test_what_stock_classes_cannot_compute_is_said(consumed: Any, name: str) -> None:
    done, _ = consumed[name, EXPORTS[name]]
    assert done.architecture == "DistmoeForSequenceClassification"
    assert any(re.search(OWN_CODE[name][2], reason) for reason in done.network.reasons)
    assert done.network.reasons[0] in (done.folder / "README.md").read_text()


def test_only_the_experts_of_the_task_are_kept(consumed: Any) -> None:
    """An expert of width 32 has 2 * 16 * 32 + 32 + 16 = 1072 parameters; 4 experts per layer, 2 per task group."""
    counts = consumed["task", 0][0].network.counts
    assert counts["routed layers"] == (4 * 1072, 1072)
    assert counts["gates"] == (12, 0)
    assert counts["heads"] == (3 * 3 * 17, 2 * 17)
    assert counts["shared by all tasks"][0] == counts["shared by all tasks"][1]
    by_token = consumed["gate token", EXPORTS["gate token"]][0].network.counts
    assert by_token["routed layers"] == (2 * 4 * 1072, 2 * 2 * 1072)
    assert by_token["gates"] == (2 * 4 * 16, 2 * 2 * 16)


def test_conditional_modules_are_counted_and_gone_where_they_fold(consumed: Any) -> None:
    """Width 16, 3 tasks, k = 64: a table of 3 x 64; 65 per generated number, 32 for each of 2 norms and alignment."""
    stock = consumed["conditional norms and alignment", EXPORTS["conditional norms and alignment"]][0]
    assert stock.network.counts["conditional modules"] == (3 * 64 + 3 * 32 * 65, 0)
    own = consumed["conditional attention", EXPORTS["conditional attention"]][0].network
    # One row of 5 positions and 3 columns; an adapter of width 5 with its scale and shift, and both biases.
    assert own.counts["conditional modules"][1] == 5 * 3 + 2 * 5 * 16 + 2 * 16 + 5 + 16
    assert "conditional modules" not in consumed["dense", EXPORTS["dense"]][0].network.counts


def test_one_expert_of_weight_1_is_taken_bit_for_bit() -> None:
    model = trained(model_config(moe_config("task")))
    routed = model.encoder.layers[1].feed_forward
    assert isinstance(routed, RoutedFeedForward)
    best = routed.gate.logits_ME[2, 2:].argmax().item()  # the group of task 2 owns experts 2 and 3
    dense = folded(routed, task_id=2)
    for part in ("w_in", "b_in", "w_out", "b_out"):
        assert torch.equal(getattr(dense, part), getattr(routed.pools["g1"], part)[best])


def test_a_checkpoint_gives_a_task_with_tokenizer_and_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = STOCK["task"][0]
    checkpoint = write_run(tmp_path / "run", config, trained(config))
    out = tmp_path / "out"
    assert main_of("convert_to_hf")([str(checkpoint), str(out), "--task", "topic"]) == 0
    text = capsys.readouterr().out
    assert "routed layers                  4,288         1,072         3,216" in text
    assert "BertForSequenceClassification.from_pretrained" in text
    values = json.loads((out / "config.json").read_text())
    assert values["id2label"] == {"0": "a", "1": "b", "2": "c"}
    assert (out / "tokenizer.json").is_file()
    weights = load_file(out / "model.safetensors")
    assert torch.equal(weights["classifier.weight"], trained(config).heads.weight[1])
    # An older export is replaced, a sub-network by the whole as well.
    assert main_of("convert_to_hf")([str(checkpoint), str(out)]) == 0
    assert "heads.weight" in load_file(out / "model.safetensors")


def test_an_unknown_task_and_a_foreign_folder_are_refused(tmp_path: Path) -> None:
    config = STOCK["task"][0]
    checkpoint = write_run(tmp_path / "run", config, trained(config))
    with pytest.raises(DataError, match=r"(?s)no such task.*sst2.*mood \| topic \| score"):
        export_task(checkpoint, tmp_path / "out", "sst2")
    with pytest.raises(CheckpointError, match="not an export"):
        export_task(checkpoint, tmp_path / "run", "topic")
