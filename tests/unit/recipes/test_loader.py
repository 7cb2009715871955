"""Recipes: names, paths, inheritance, overrides."""

from __future__ import annotations

from pathlib import Path

import pytest

from distmoe.errors import ConfigError
from distmoe.recipes import available, load_recipe, resolve
from distmoe.recipes.loader import DEFAULT_RECIPE


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def test_the_default_recipe_ships_and_needs_nothing():
    assert DEFAULT_RECIPE in available()
    assert resolve(DEFAULT_RECIPE).tasks.source == "suite"


def test_a_recipe_merges_below_what_it_extends(tmp_path):
    write(tmp_path, "base.yaml", "run: {name: base, seed: 3}\nmodel: {moe: {num_experts: 4, gate: {kind: token}}}\n")
    child = write(tmp_path, "sub/child.yaml", "extends: ../base.yaml\nrun: {name: child}\nmodel: {moe: {top_k: 2}}\n")
    assert load_recipe(child) == {
        "run": {"name": "child", "seed": 3},
        "model": {"moe": {"num_experts": 4, "gate": {"kind": "token"}, "top_k": 2}},
    }


def test_null_switches_a_section_off_and_a_later_mapping_on(tmp_path):
    write(tmp_path, "dense.yaml", "extends: demo\nmodel: {moe: null}\nstructure: {grouping: one}\n")
    sparse = write(tmp_path, "sparse.yaml", "extends: dense.yaml\nmodel: {moe: {num_experts: 2}}\n")
    assert resolve(str(tmp_path / "dense.yaml")).model.moe is None
    assert resolve(sparse).model.moe.num_experts == 2


def test_a_list_replaces_a_list(tmp_path):
    write(tmp_path, "base.yaml", "optimizer: {betas: [0.8, 0.9]}\n")
    child = write(tmp_path, "child.yaml", "extends: base.yaml\noptimizer: {betas: [0.9, 0.95]}\n")
    assert load_recipe(child)["optimizer"]["betas"] == [0.9, 0.95]


def test_short_exponents_are_numbers(tmp_path):
    path = write(tmp_path, "r.yaml", "optimizer: {lr: 1e-4, eps: 1E-9, weight_decay: .5e-1}\nrun: {name: e10}\n")
    assert load_recipe(path) == {
        "optimizer": {"lr": 1e-4, "eps": 1e-9, "weight_decay": 0.05},
        "run": {"name": "e10"},
    }


def test_an_empty_recipe_is_the_defaults(tmp_path):
    assert load_recipe(write(tmp_path, "empty.yaml", "# nothing\n")) == {}


def test_overrides_win_over_the_recipe():
    config = resolve("demo", ["model.moe.num_experts=12", "run.name=other"])
    assert (config.model.moe.num_experts, config.run.name) == (12, "other")


def test_a_saved_configuration_is_a_recipe_that_gives_the_same_run(tmp_path):
    import yaml

    config = resolve("token_moe", ["run.seed=5"])
    path = write(tmp_path, "config.yaml", yaml.safe_dump(config.model_dump()))
    assert resolve(path) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", r"is not a mapping of sections[\s\S]*got: +list[\s\S]*run \| tasks \| data"),
        ("run: {name: [\n", r"is not YAML[\s\S]*line 2"),
        ("extends: [demo, dense]\n", r"extends must name one recipe[\s\S]*\['demo', 'dense'\]"),
        ("extends: nothing\n", r"no such recipe[\s\S]*got: +nothing[\s\S]*demo \| dense"),
    ],
)
def test_a_broken_recipe_is_refused(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe(write(tmp_path, "r.yaml", text))


def test_a_circle_of_recipes_is_refused(tmp_path):
    first = write(tmp_path, "a.yaml", "extends: b.yaml\n")
    write(tmp_path, "b.yaml", "extends: a.yaml\n")
    with pytest.raises(ConfigError, match=r"recipe a.yaml extends itself[\s\S]*a.yaml -> b.yaml -> a.yaml"):
        load_recipe(first)


def test_an_unknown_recipe_is_refused_with_the_shipped_ones():
    with pytest.raises(ConfigError, match=r"no such recipe[\s\S]*got: +demmo[\s\S]*demo \| dense \| gen_tasks \| glue"):
        resolve("demmo")


def test_an_unknown_key_is_refused_with_the_closest():
    with pytest.raises(ConfigError, match=r"unknown key 'data\.batchsize'[\s\S]*did you mean data\.batch_size\?"):
        resolve("demo", ["data.batchsize=3"])
