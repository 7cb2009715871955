"""Every shipped recipe and every shipped DeepSpeed file is one that can be used, and so is every supported pair."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from distmoe.config import describe
from distmoe.engine.ds_config import resolve as resolve_deepspeed
from distmoe.engine.supported import combination, lookup
from distmoe.parallel.placement import Placement, place
from distmoe.recipes import available, load_recipe, resolve
from distmoe.tasks import TaskSet, TaskSpec
from distmoe.training.config import RunConfig
from distmoe.training.contradictions import check_environment, check_structure
from distmoe.training.grouping import resolve_grouping

ROOT = Path(__file__).parents[2]
DS_CONFIGS = sorted(path.stem for path in (ROOT / "ds_configs").glob("*.json"))
FOLDERS = ["data.root=.", "model.pretrained=folder"]
OVERRIDES = {
    "nlu": ["data.root=."], "nlu_dense": ["data.root=."], "mtsl_nlu": ["data.root=."], "own_tasks": ["data.root=."],
    "ca_mtl": FOLDERS, "ca_mtl_moe": FOLDERS,
}  # fmt: skip

TASKS = TaskSet(
    tuple(
        TaskSpec(
            name=f"t{family}{index}", kind="classification", metric="accuracy", labels=("a", "b"), family=f"f{family}"
        )
        for family in range(3)
        for index in range(3)
    )
)


def config_of(recipe: str) -> RunConfig:
    return resolve(recipe, OVERRIDES.get(recipe, []))


def tasks_of(config: RunConfig) -> TaskSet:
    """Tasks with the recipe's names, whose data is elsewhere; without names, nine tasks of three families."""
    if config.tasks.names is None:
        return TASKS
    return TaskSet(
        tuple(
            TaskSpec(name=name, kind="classification", metric="accuracy", labels=("no", "yes"))
            for name in config.tasks.names
        )
    )


def placement_of(config: RunConfig, num_ranks: int) -> Placement | None:
    """The recipe's placement as a run on ``num_ranks`` would build it."""
    if config.model.moe is None:
        return None
    tasks = tasks_of(config)
    grouping = resolve_grouping(config.structure, tasks, num_layers=2)
    check_structure(config, tasks, grouping)
    weights = [1 / len(tasks)] * len(tasks)
    parallel = config.parallel
    return place(grouping, weights, num_ranks=num_ranks, ep_size=parallel.ep_size, mode=parallel.placement)


def test_what_ships_is_what_the_docs_name():
    assert available() == [
        "add_task", "add_task_frozen", "ca_mtl", "ca_mtl_demo", "ca_mtl_moe", "ca_mtl_moe_demo",
        "demo", "dense", "gen_tasks", "glue", "lm", "lm_corpora", "lm_dense", "mtsl", "mtsl_nlu", "nlu", "nlu_dense",
        "own_tasks", "partitioned", "superglue", "task_moe_learned", "token_moe",
    ]  # fmt: skip
    assert DS_CONFIGS == [
        "zero0_fp32", "zero1_bf16", "zero1_bf16_unequal", "zero1_fp32", "zero2_bf16", "zero2_fp16", "zero2_offload",
        "zero3_bf16",
    ]  # fmt: skip
    recipes, files = (ROOT / "docs" / "recipes.md").read_text(), (ROOT / "ds_configs" / "README.md").read_text()
    assert all(f"| `{name}` |" in recipes for name in available())
    assert all(f"| `{name}` |" in files for name in DS_CONFIGS)


@pytest.mark.parametrize("recipe", available())
def test_a_recipe_is_checked_and_names_its_run_after_itself(recipe, tmp_path):
    config = config_of(recipe)
    if config.model.pretrained is not None:
        (tmp_path / "config.json").write_text("{}")
        config = resolve(recipe, [*OVERRIDES[recipe], f"model.pretrained={tmp_path}"])
    assert config.run.name == recipe
    check_environment(config, num_ranks=2)


@pytest.mark.parametrize("recipe", available())
def test_a_recipe_teaches(recipe):
    text = (ROOT / "distmoe" / "recipes" / f"{recipe}.yaml").read_text()
    assert text.startswith(f"# {recipe}: ")
    assert "#   deepspeed --num_gpus" in text


@pytest.mark.parametrize("name", DS_CONFIGS)
def test_a_deepspeed_file_leaves_sizes_to_the_recipe_and_says_the_rest(name):
    values = json.loads((ROOT / "ds_configs" / f"{name}.json").read_text())
    sizes = ["train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"]
    assert [values[key] for key in sizes] == ["auto"] * 4
    assert "round_robin_gradients" not in values["zero_optimization"]
    if "bf16" in values:
        assert values["data_types"] == {"grad_accum_dtype": "bf16" if name == "zero1_bf16_unequal" else "fp32"}


# Pairs that are refused on two ranks, by what the recipe is; everything else is supported.
REFUSED = {
    "routed": {"zero0_fp32"},
    "partitioned": {"zero0_fp32", "zero2_bf16", "zero2_fp16", "zero2_offload", "zero3_bf16"},
    "dense": set(),
}


@pytest.mark.parametrize("name", DS_CONFIGS)
@pytest.mark.parametrize("recipe", available())
def test_every_pair_resolves_and_its_support_is_known(recipe, name):
    config = config_of(recipe)
    settings = resolve_deepspeed(
        name,
        optimizer=config.optimizer,
        micro_batch_size=config.data.batch_size // 2,
        accumulation_steps=1,
        num_ranks=2,
        device_type="cpu",
    )
    assert settings.values["train_batch_size"] == config.data.batch_size
    assert settings.values["gradient_clipping"] == config.optimizer.gradient_clipping
    kind = "dense" if config.model.moe is None else "partitioned" if recipe == "partitioned" else "routed"
    row = lookup(combination(settings, placement=placement_of(config, 2), num_ranks=2, routed=kind != "dense"))
    assert row.supported == (name not in REFUSED[kind]), row.note


def test_configuration_docs_are_up_to_date():
    """``make docs`` writes the file."""
    document = runpy.run_path(str(ROOT / "tools" / "document_configuration.py"))["document"]
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == document()


def test_every_key_has_a_description():
    assert [key for key, _, _, description in describe(RunConfig) if not description] == []


def test_recipes_are_small():
    """A recipe says what differs from the defaults; it does not repeat all keys."""
    assert all(len(str(load_recipe(name))) < 5000 for name in available())
