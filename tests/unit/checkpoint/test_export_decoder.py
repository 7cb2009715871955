"""Exported decoders are loaded, and generate, in a process that knows transformers only."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from distmoe.checkpoint.export_hf import export, write_export
from distmoe.checkpoint.export_task import export_task, write_task_export
from distmoe.models.config import ModelConfig
from distmoe.models.decoder_config import DecoderConfig
from distmoe.models.generation import Prompt, generate
from distmoe.models.multitask_decoder import MultiTaskDecoder
from distmoe.nn.rotary import RotaryConfig
from distmoe.tasks import TaskGrouping
from distmoe.tokenization import load_tokenizer
from tests.unit.checkpoint.consumer import consume
from tests.unit.checkpoint.runs import write_run
from tests.unit.checkpoint.tools import main_of
from tests.unit.models.decoder_samples import TASKS, decoder_config, logits_of, make_decoder, token_batch
from tests.unit.models.samples import gate_config, moe_config

PARTITION = [[0, 1], [2]]
BATCH = token_batch((7, 3, 5, 1), (0, 0, 0, 0))
PROMPTS = [BATCH.input_ids_BS[:1], BATCH.input_ids_BS[1:2, :3]]
TOLERANCE = 1e-5  # fp32
LLAMA3 = RotaryConfig(scaling="llama3", factor=4.0, original_max_positions=16)
YARN = RotaryConfig(scaling="yarn", factor=4.0, original_max_positions=16)
PLAIN = DecoderConfig(num_kv_heads=2)
QWEN3 = DecoderConfig(num_kv_heads=2, qk_norm=True, head="shared", head_size=8)


def routed(gate: Any, layers: Any = "all", **changes: Any) -> Any:
    return moe_config(gate, layers=layers, num_experts=6, **changes)


# Model, and the stock class of one task of it.
STOCK: dict[str, tuple[ModelConfig, str]] = {
    "dense, tied, llama3 positions": (
        decoder_config(decoder=DecoderConfig(num_kv_heads=2, rotary=LLAMA3)),
        "LlamaForCausalLM",
    ),
    "task gate, per-task heads": (
        decoder_config(routed("task", experts_per_task=2), decoder=DecoderConfig(num_kv_heads=2, head="per_task")),
        "LlamaForCausalLM",
    ),
    "fixed gate, two halves": (
        decoder_config(routed("fixed", top_k=2, combine="renorm"), decoder=PLAIN),
        "LlamaForCausalLM",
    ),
    "task gate, shared expert in every layer": (
        decoder_config(routed("task", shared_expert=True), decoder=PLAIN),
        "LlamaForCausalLM",
    ),
    "biases, yarn": (
        decoder_config(decoder=DecoderConfig(num_kv_heads=2, attention_bias=True, rotary=YARN)),
        "Qwen2ForCausalLM",
    ),
    "window": (decoder_config(decoder=DecoderConfig(num_kv_heads=2, sliding_window=3)), "MistralForCausalLM"),
    "query and key norms": (decoder_config(routed("task"), decoder=QWEN3), "Qwen3ForCausalLM"),
    "token gate": (decoder_config(routed("token"), decoder=PLAIN), "MixtralForCausalLM"),
    "per-task routers, two experts, window": (
        decoder_config(
            routed("per_task", top_k=2, combine="renorm"), decoder=DecoderConfig(num_kv_heads=2, sliding_window=3)
        ),
        "MixtralForCausalLM",
    ),
    "token gate in one layer, raw weights": (
        decoder_config(routed("token", layers=[1], top_k=2, combine="raw"), decoder=QWEN3),
        "Qwen3MoeForCausalLM",
    ),
    "token gate, weights summing to one": (
        decoder_config(routed("token", top_k=2, combine="renorm"), decoder=QWEN3),
        "Qwen3MoeForCausalLM",
    ),
}
OWN_CODE: dict[str, tuple[ModelConfig, str]] = {
    "hybrid gate, pools of two sizes": (
        decoder_config(routed("hybrid", experts_per_task=2), decoder=PLAIN),
        "gate hybrid at layers 0, 1 is more than one",
    ),
    "mlp router": (
        decoder_config(routed(gate_config("task_embedding")), decoder=PLAIN),
        "gate task_embedding at layers 0, 1 is more than one",
    ),
    "one layer routed": (decoder_config(routed("token", layers=[1]), decoder=PLAIN), "only layers 1 are routed"),
    "shared expert": (decoder_config(routed("token", shared_expert=True), decoder=QWEN3), "it has a shared expert"),
    "equal weights": (decoder_config(routed("token", top_k=2), decoder=QWEN3), "its 2 experts weigh equally"),
    "raw weights": (decoder_config(routed("token", combine="raw"), decoder=PLAIN), "do not sum to 1"),
    "biases": (
        decoder_config(routed("token"), decoder=DecoderConfig(attention_bias=True, head="per_task")),
        "its attention has biases",
    ),
    "other widths": (
        decoder_config(routed("task", layers=[1], shared_expert=True), decoder=PLAIN),
        r"another width together than a dense layer \(layer 1: 64\)",
    ),
    "norms and biases": (
        decoder_config(decoder=DecoderConfig(qk_norm=True, attention_bias=True)),
        "no stock class has this attention",
    ),
}


def trained(config: ModelConfig) -> MultiTaskDecoder:
    """A model in which no parameter has a special value."""
    model = make_decoder(config, partition=PARTITION)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def pieces(config: ModelConfig, model: MultiTaskDecoder) -> dict[str, Any]:
    layers = sum(name.endswith("pools.g0.w_in") for name, _ in model.named_parameters())
    grouping = TaskGrouping.uniform(len(TASKS), layers, PARTITION)
    return {"config": config, "tasks": TASKS, "grouping": grouping, "tokenizer_folder": None, "metrics": {}}


def wanted(model: MultiTaskDecoder, task: int) -> tuple[torch.Tensor, list[list[int]]]:
    batch = token_batch((7, 3, 5, 1), (task,) * 4)
    prompts = [Prompt(ids[0].tolist(), task) for ids in PROMPTS]
    return logits_of(model, batch), generate(model, prompts, max_new_tokens=6)


def job(folder: Path, calls: list[dict[str, Any]], *, trust: bool, **more: Any) -> dict[str, Any]:
    inputs = {"input_ids": BATCH.input_ids_BS, "attention_mask": BATCH.attention_mask_BS.long()}
    return {"folder": str(folder), "model_inputs": inputs, "calls": calls, "prompts": PROMPTS, "trust": trust} | more


def assert_equal(found: dict[str, Any], index: int, logits: torch.Tensor, answers: list[list[int]]) -> None:
    masked = found["answers"][index] * BATCH.attention_mask_BS.unsqueeze(-1)
    torch.testing.assert_close(masked, logits, atol=TOLERANCE, rtol=0)
    assert found["generated"][2 * index : 2 * index + 2] == answers
    assert (found["missing"], found["unexpected"]) == ([], [])


SOME = (
    "task gate, per-task heads",
    "biases, yarn",
    "per-task routers, two experts, window",
    "token gate in one layer, raw weights",
    "hybrid gate, pools of two sizes",
)
WHOLE = (
    "task gate, per-task heads",
    "hybrid gate, pools of two sizes",
    "biases, yarn",
    "per-task routers, two experts, window",
)


@pytest.mark.parametrize(
    "names", [SOME, pytest.param(tuple(STOCK | OWN_CODE), marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_stock_transformers_computes_what_distmoe_computes(names: tuple[str, ...], tmp_path: Path) -> None:
    """All exports in one process: starting it costs more than loading them."""
    cases = {name: (STOCK | OWN_CODE)[name] for name in names}
    models = {name: trained(config) for name, (config, _) in cases.items()}
    jobs, expected = [], []
    for number, (name, (config, text)) in enumerate(cases.items()):
        model, task, folder = models[name], number % 3, tmp_path / f"task{number}"
        done = write_task_export(folder, model, task_id=task, title="t", **pieces(config, model))
        if name in STOCK:
            assert (done.architecture, done.network.reasons) == (text, ()), name
            assert not list(folder.glob("*.py"))
        else:
            assert done.architecture == "DistmoeForCausalLM"
            assert re.search(text, "; ".join(done.network.reasons)), done.network.reasons
        jobs.append(job(folder, [{}], trust=name not in STOCK))
        expected.append((name, 0, *wanted(model, task)))
    for name in WHOLE[:2] if names == SOME else WHOLE:
        model, config = models[name], cases[name][0]
        folder = write_export(tmp_path / f"whole{len(jobs)}", model, title="t", **pieces(config, model))
        labels = torch.where(BATCH.attention_mask_BS, BATCH.input_ids_BS, -100)
        calls: list[dict[str, Any]] = [{"task": spec.name} for spec in TASKS]
        jobs.append(job(folder, calls, trust=True, labels=labels))
        expected.append((name, 3, *wanted(model, 0)))
    found = consume(jobs, tmp_path, "hf_decoder_consumer.py")
    worst = 0.0
    for result, (name, kind, logits, answers) in zip(found, expected, strict=True):
        assert_equal(result, 0, logits, answers)
        worst = max(worst, float((result["answers"][0] * BATCH.attention_mask_BS.unsqueeze(-1) - logits).abs().max()))
        assert result["class"].startswith("transformers.") == (name in STOCK and not kind)
        for task in range(1, kind):
            assert_equal(result, task, *wanted(models[name], task))
        if kind:
            torch.testing.assert_close(result["after_saving"], result["answers"][0], atol=0, rtol=0)
            assert 0 < result["loss"] < 10
    print(f"largest logit difference over {len(found)} exports: {worst:.1e}")


def test_the_tools_export_a_checkpoint_whole_and_by_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, _ = STOCK["task gate, per-task heads"]
    model = trained(config)
    checkpoint = write_run(tmp_path / "run", config, model, tasks=TASKS, partition=PARTITION)
    main = main_of("convert_to_hf")
    assert main([str(checkpoint), str(tmp_path / "whole")]) == 0
    assert "AutoModelForCausalLM.from_pretrained" in capsys.readouterr().out
    values = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert values["model_type"] == "distmoe_decoder"
    # Who answers must put a text into the template of training, and stop where training did.
    assert [task.get("prompt") for task in values["tasks"]] == ["{text}\n", None, None]
    assert values["eos_token_id"] == load_tokenizer(tmp_path / "whole").sep_token_id
    card = (tmp_path / "whole" / "README.md").read_text()
    assert "pipeline_tag: text-generation" in card
    assert "4 heads on 2 key-value heads" in card
    assert r'tokenizer("a text\n", return_tensors="pt")' in card
    assert main([str(checkpoint), str(tmp_path / "poem"), "--task", "poem"]) == 0
    assert "LlamaForCausalLM.from_pretrained" in capsys.readouterr().out
    card = (tmp_path / "poem" / "README.md").read_text()
    assert 'tokenizer("a text", add_special_tokens=False, return_tensors="pt")' in card
    assert export(checkpoint, tmp_path / "whole").name == "whole"
    counts = export_task(checkpoint, tmp_path / "poem", "poem").network.counts
    assert counts["heads"] == (3 * 50 * 16, 50 * 16)
    assert counts["gates"][1] == 0
