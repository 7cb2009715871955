from __future__ import annotations

import pytest

from distmoe.config import build
from distmoe.errors import ConfigError
from distmoe.recipes import load_recipe, resolve
from distmoe.studies.jobs import job_of, order
from distmoe.studies.study import Study, available, load_study

VALUES = {
    "question": "Which?",
    "recipe": "dense",
    "arms": {
        "C": {"title": "control"},
        "D": {"title": "wider", "recipe": "demo", "overrides": ["model.moe.num_experts=12", "optimizer.lr=1e-4"]},
        "J.a": {"title": "faster", "like": "D", "overrides": ["optimizer.lr=1e-3"]},
        "J.b": {"title": "slower", "like": "J.a", "overrides": ["optimizer.lr=1e-5"]},
        "K": {"title": "longer", "like": "C", "compute_of": "D"},
        "A": {"title": "alone", "like": "C", "each_task": True},
    },
    "comparisons": [{"claim": "wider is better", "arm": "D", "against": "C"}],
}


def study(**changes) -> Study:
    return build(Study, VALUES | changes)


def test_an_arm_is_what_it_starts_from_and_then_its_own_overrides():
    assert study().recipe_of("J.b") == "demo"
    assert study().recipe_of("K") == "dense"
    job = job_of(study(), "J.b", 7, overrides=["optimizer.lr=5"])
    overrides = job.runs["J.b-7"]
    assert overrides == (
        "optimizer.lr=5", "model.moe.num_experts=12", "optimizer.lr=1e-4", "optimizer.lr=1e-3", "optimizer.lr=1e-5",
        "run.seed=7",
    )  # fmt: skip
    config = resolve(job.recipe, overrides)
    assert (config.optimizer.lr, config.model.moe.num_experts, config.run.seed) == (1e-5, 12, 7)


def test_the_seed_can_stand_in_an_override():
    chosen = study(
        arms={"C": {"title": "own data", "overrides": ["tasks.suite.generator_seed={seed}"]}}, comparisons=[]
    )
    assert job_of(chosen, "C", 4).runs["C-4"][0] == "tasks.suite.generator_seed=4"


def test_a_letter_stands_for_its_variants_and_no_letter_for_all():
    assert study().choose(["J", "C"]) == ["C", "J.a", "J.b"]
    assert study().choose([]) == list(VALUES["arms"])


def test_runs_come_seed_by_seed_and_an_arm_after_the_one_that_pays_for_it():
    assert order(study(), ["K", "C", "D"], (4, 5)) == [("C", 4), ("D", 4), ("K", 4), ("C", 5), ("D", 5), ("K", 5)]


def test_equal_compute_is_updates_for_all_forward_passes_of_the_other_arm():
    """64 examples per step cost 192 forwards: 1,000 forwards pay for 5.2 steps, so 6 are made."""
    assert job_of(study(), "K", 0, forward_equivalents=1000).runs["K-0"][-1] == "schedule.num_steps=6"


def test_one_model_per_task_shares_the_steps_out():
    job = job_of(study(), "A", 1, overrides=["tasks.names=[planted0_a,planted1_b]", "schedule.num_steps=9"])
    assert list(job.runs) == ["A-1-planted0_a", "A-1-planted1_b"]
    assert job.runs["A-1-planted1_b"][-2:] == ("schedule.num_steps=5", "tasks.names=[planted1_b]")


def test_one_model_per_task_shares_out_the_compute_that_its_arm_gets():
    """1,920 forwards pay for 10 steps of 64 examples, 5 per task."""
    arms = VALUES["arms"] | {"A": {"title": "alone", "like": "C", "each_task": True, "compute_of": "D"}}
    names = ["tasks.names=[planted0_a,planted1_b]", "schedule.num_steps=90"]
    job = job_of(study(arms=arms), "A", 1, overrides=names, forward_equivalents=1920)
    assert [overrides[-2] for overrides in job.runs.values()] == ["schedule.num_steps=5"] * 2


@pytest.mark.parametrize(
    ("changes", "got"),
    [
        ({"arms": {"C": {"title": "x", "like": "X"}}}, "X"),
        ({"arms": {"C": {"title": "x", "compute_of": "C"}}}, "C"),
        (
            {
                "arms": {
                    "C": {"title": "x", "compute_of": "D"},
                    "D": {"title": "y", "compute_of": "E"},
                    "E": {"title": "z"},
                }
            },
            "compute_of: C -> D -> E",
        ),
        ({"arms": {"C": {"title": "x", "like": "D"}, "D": {"title": "y", "like": "C"}}}, "C <- D <- C"),
        ({"comparisons": [{"claim": "c", "arm": "C", "against": "Z"}]}, "Z"),
        ({"arms": {"C": {"title": "x", "overrride": []}}}, "[]"),
    ],
)
def test_a_study_that_refers_to_nothing_is_refused(changes, got):
    with pytest.raises(ConfigError) as refused:
        study(**({"comparisons": []} | changes))
    assert str(refused.value.got) == got


def test_an_arm_without_the_one_that_pays_for_it_is_refused():
    with pytest.raises(ConfigError, match="gets the compute of arm D"):
        order(study(), ["C", "K"], [0])


def test_an_unknown_arm_or_study_is_refused_with_those_that_exist(tmp_path):
    with pytest.raises(ConfigError) as refused:
        study().choose(["J", "Q"])
    assert refused.value.expected == "C | D | J.a | J.b | K | A"
    with pytest.raises(ConfigError, match="no such study"):
        load_study(str(tmp_path / "none.yaml"))
    (tmp_path / "broken.yaml").write_text("arms: [")
    with pytest.raises(ConfigError, match="not YAML"):
        load_study(str(tmp_path / "broken.yaml"))


@pytest.mark.parametrize("name", available())
def test_every_arm_of_a_shipped_study_can_be_trained(name):
    shipped = load_study(name)
    folders = ["model.pretrained=folder"]
    if load_recipe(shipped.recipe)["tasks"]["source"] == "local":
        folders.append("data.root=.")
    for arm in shipped.arms:
        if not shipped.arms[arm].each_task:
            job_of(shipped, arm, 0, overrides=folders)


def test_conditional_arms_differ_from_their_control_by_conditioning_alone():
    shipped = load_study("ca_mtl")
    folders = ["model.pretrained=folder", "data.root=."]
    configs = {
        arm: resolve("ca_mtl", [*folders, *shipped.overrides_of(arm)]).model_dump() for arm in ("B", "C", "D", "F")
    }
    assert configs["B"]["model"] | {"freeze": "lower_half"} == configs["C"]["model"]
    assert configs["C"]["model"] | {"conditional": configs["D"]["model"]["conditional"]} == configs["D"]["model"]
    assert configs["C"]["data"] == configs["D"]["data"] == configs["F"]["data"]
    conditional = configs["D"]["model"]["conditional"] | {"condition_on": "random_task"}
    assert configs["F"]["model"] == configs["D"]["model"] | {"conditional": conditional}
