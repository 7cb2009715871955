"""Pairs of values that cannot both be meant are refused, and each near miss is accepted."""

from __future__ import annotations

import pytest

from distmoe.errors import ConfigError
from distmoe.recipes import resolve


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        ("nlu", [], r"no folder is named[\s\S]*remedy: +add data\.root=FOLDER"),
        (
            "gen_tasks",
            ["data.root=folder"],
            r"would not be read[\s\S]*tasks\.source=text_suite, data\.root=folder[\s\S]*set tasks\.source=local",
        ),
        ("demo", ["data.root=folder"], r"would not be read[\s\S]*tasks\.source=suite, data\.root=folder"),
        ("glue", ["data.root=folder"], r"would not be read[\s\S]*tasks\.source=hub, data\.root=folder"),
        ("glue", ["tasks.names=[cola, imdb]"], r"does not describe every task[\s\S]*got: .*imdb[\s\S]*cola \| sst2"),
        ("demo", ["tasks.source=hub"], r"does not describe every task[\s\S]*no entry in tasks\.hub"),
        ("demo", ["model.num_heads=3"], r"num_heads does not divide[\s\S]*hidden_size=128, model\.num_heads=3"),
        ("demo", ["data.max_length=512"], r"longer than the model's context[\s\S]*data\.max_length <= 64"),
        (
            "demo",
            ["model.decoder.qk_norm=true"],
            r"keys of the decoder are set[\s\S]*model\.family=encoder with model\.decoder",
        ),
        (
            "demo",
            ["model.family=decoder", "model.norm=pre", "model.pooling=mean"],
            r"keys of the encoder are set[\s\S]*model\.family=decoder with model\.norm, model\.pooling",
        ),
        ("task_moe_learned", ["model.family=decoder"], r"answers in tokens[\s\S]*structure\.learn with model\.family"),
        ("demo", ["model.moe=null"], r"no routed layer[\s\S]*structure\.grouping=family[\s\S]*structure\.grouping=one"),
        ("dense", ["parallel.ep_size=2"], r"no experts to place[\s\S]*parallel\.ep_size=2"),
        ("dense", ["parallel.placement=partitioned"], r"no experts to place[\s\S]*placement=partitioned"),
        (
            "demo",
            ["checkpoint.format=deepspeed", "checkpoint.asynchronous=true"],
            r"cannot be written while training goes on[\s\S]*checkpoint.asynchronous=false",
        ),
        (
            "task_moe_learned",
            ["parallel.tensor=2"],
            r"cut over ranks[\s\S]*parallel\.tensor=2 with structure\.learn[\s\S]*parallel\.tensor=1",
        ),
        (
            "demo",
            ["run.early_stop=2", "run.eval_every=null"],
            r"stops early by its evaluations[\s\S]*run\.early_stop=2, run\.eval_every=null",
        ),
        ("demo", ["parallel.sequence=true"], r"and there is one[\s\S]*parallel\.tensor=1[\s\S]*parallel\.tensor=2"),
        ("mtsl", ["parallel.tensor=2", "structure.learn=null"], r"with model\.moe\.unit=block"),
        ("ca_mtl_demo", ["parallel.tensor=2"], r"with data\.sampling\.strategy=uncertainty"),
        ("ca_mtl_demo", ["parallel.tensor=2", "data.sampling={strategy: uniform}"], r"with model\.conditional"),
        ("demo", ["parallel.tensor=2", "checkpoint.format=deepspeed"], r"with checkpoint\.format=deepspeed"),
        ("demo", ["model.moe.capacity_factor=1.25"], r"capacity contradicts a task-level gate[\s\S]*kind=task"),
        ("demo", ["model.moe.gate.kind=fixed"], r"gate fixed learns nothing[\s\S]*random"),
        ("demo", ["model.moe.gate.table=random"], r"read by gate fixed only[\s\S]*kind=task with a table"),
        (
            "token_moe",
            ["model.moe.top_k=2", "model.moe.experts_per_task_group=1"],
            r"more experts than there are[\s\S]*model\.moe\.experts_per_task_group=1",
        ),
        (
            "task_moe_learned",
            ["model.moe.experts_per_task_group=null"],
            r"number of task groups[\s\S]*experts_per_task_group=1",
        ),
        (
            "task_moe_learned",
            ["structure.learn.restart=true", "structure.learn.trial_steps=50"],
            r"arms of a trial take as many steps[\s\S]*trial_steps=50, task_steps=500[\s\S]*trial_steps=500",
        ),
        (
            "task_moe_learned",
            ["structure.learn.restart=true", "structure.learn.mean=least_squares"],
            r"nothing that was trained is joined[\s\S]*mean=least_squares",
        ),
        (
            "task_moe_learned",
            ["structure.learn.alignment=0.2", "structure.learn.probe_split=train"],
            r"told their grouping[\s\S]*restart=true, alignment=0\.2[\s\S]*alignment=0",
        ),
        ("mtsl", ["structure.learn.until=30"], r"over before the first[\s\S]*until=30, task_steps=40[\s\S]*until=40"),
        ("task_moe_learned", ["schedule.num_steps=200"], r"end after training[\s\S]*task_steps=500 \+ trial_steps=0"),
        (
            "task_moe_learned",
            ["schedule.num_steps=600", "structure.learn.restart=false"],
            r"end after training[\s\S]*task_steps=500 \+ trial_steps=500",
        ),
        ("task_moe_learned", ["structure.learn.probe_examples=32"], r"from the probe set[\s\S]*probe_examples=32"),
        ("task_moe_learned", ["structure.learn.task_steps=[]"], r"task_steps must be a number of steps, or one per"),
        ("mtsl", ["structure.learn.amalgamation.steps=[3, 0]"], r"amalgamation\.steps must be a number of steps"),
        ("task_moe_learned", ["structure.learn.amalgamation={}"], r"only whole layers[\s\S]*model\.moe\.unit=ffn"),
        ("mtsl", ["model.moe.shared_expert=true"], r"which no gate chooses[\s\S]*shared_expert=True[\s\S]*remove"),
        ("mtsl", ["model.moe.experts_per_task_group=2"], r"one whole layer[\s\S]*experts_per_task_group=1"),
        ("mtsl", ["parallel.ep_size=2"], r"whole and unconditioned[\s\S]*parallel\.ep_size=2"),
        ("task_moe_learned", ["model.moe.experts_per_task=1"], r"counted in two ways[\s\S]*set the other to null"),
        ("task_moe_learned", ["model.moe.largest_pool=2"], r"limits pools that grow[\s\S]*experts_per_task=None"),
        (
            "task_moe_learned",
            [
                "model.moe.experts_per_task_group=null",
                "model.moe.experts_per_task=1",
                "model.moe.gate={kind: fixed, table: random}",
            ],
            r"fixed table of experts cannot follow",
        ),
        ("task_moe_learned", ["structure.learn.threshold=1.0"], r"structure\.learn\.threshold"),
        ("task_moe_learned", ["model.conditional={}"], r"share everything above them[\s\S]*model\.conditional=null"),
        ("task_moe_learned", ["run.early_stop=3"], r"end training before the structure is learned"),
        (
            "task_moe_learned",
            ["model.moe.gate={kind: task_embedding, router: linear}"],
            r"rows of this gate cannot follow",
        ),
        ("token_moe", ["model.moe.top_k=9"], r"more experts than there are[\s\S]*top_k=9, model\.moe\.num_experts=8"),
        (
            "token_moe",
            ["model.moe.top_k=3"],
            r"cannot be shared by top_k[\s\S]*intermediate_size=512, model\.moe\.top_k=3",
        ),
        (
            "add_task_frozen",
            ["data.sampling.tasks=[new]", "optimizer.weight_decay=0.1"],
            r"heads of tasks that are not trained[\s\S]*weight_decay=0\.1[\s\S]*remedy: +set optimizer\.weight_decay=0",
        ),
        (
            "ca_mtl_demo",
            ["data.sampling.tasks=[planted0_a]"],
            r"candidates of every task[\s\S]*got: .*planted0_a[\s\S]*data\.sampling\.tasks=null",
        ),
        ("demo", ["model.freeze=lower_half"], r"would stay random[\s\S]*model\.freeze=lower_half[\s\S]*HF_DIR"),
        (
            "demo",
            ["model.conditional.condition_from=first_trainable"],
            r"no frozen layers to stay above[\s\S]*model\.freeze=none[\s\S]*lower_half",
        ),
        ("demo", ["model.conditional.alignement.enabled=false"], r"unknown key 'model\.conditional\.alignement'"),
        (
            "demo",
            ["model.conditional.attention.block_side=200"],
            r"larger than the attention bias[\s\S]*128",
        ),
        ("demo", ["model.moe.gate.detach_input=true"], r"reads no states[\s\S]*or a gate that routes tokens"),
        ("demo", ["model.moe.layers=[1, 4]"], r"must name existing layers[\s\S]*0 to 3"),
        ("demo", ["model.moe.layers=[1, 1]"], r"must name existing layers, each once"),
        ("demo", ["model.moe.layers=[]"], r"must name existing layers[\s\S]*model\.moe=null for a dense model"),
    ],
)
def test_a_contradiction_is_refused(recipe, overrides, message):
    with pytest.raises(ConfigError, match=message):
        resolve(recipe, overrides)


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [
        ("nlu", ["data.root=anywhere"]),
        ("lm_corpora", ["data.root=anywhere"]),
        ("gen_tasks", ["tasks.source=local", "data.root=anywhere"]),
        ("glue", ["tasks.names=[rte]"]),
        ("demo", ["model.moe=null", "structure.grouping=one"]),
        ("demo", ["data.max_length=64"]),
        ("demo", ["run.early_stop=2"]),
        ("add_task_frozen", ["data.sampling.tasks=[new]"]),
        ("add_task_frozen", ["optimizer.weight_decay=0.1"]),  # all tasks are trained
        ("token_moe", ["model.moe.capacity_factor=1.25"]),
        ("token_moe", ["model.moe.top_k=3", "model.moe.expert_size=128"]),
        ("demo", ["model.moe.gate.kind=fixed", "model.moe.gate.table=random"]),
        ("demo", ["model.moe.layers=[0, 3]"]),
        ("demo", ["model.conditional.mode=distmoe"]),
        ("token_moe", ["model.moe.gate.detach_input=true"]),
        ("demo", ["model.pretrained=folder", "model.freeze=[0]", "model.conditional.condition_from=first_trainable"]),
        # a pretrained folder brings its own shape, which is checked where it is read
        ("demo", ["model.pretrained=folder", "model.num_heads=3", "model.moe.layers=[1, 11]", "data.max_length=512"]),
    ],
)
def test_a_near_miss_is_accepted(recipe, overrides):
    resolve(recipe, overrides)


def test_a_task_group_may_have_more_experts_than_each_of_its_tasks():
    pooled = ["model.moe.experts_per_task=1", "model.moe.top_k=2", "structure.grouping=one"]
    assert resolve("demo", pooled).model.moe.top_k == 2
    with pytest.raises(ConfigError, match=r"more experts than there are[\s\S]*experts_per_task=1"):
        resolve("task_moe_learned", ["model.moe.experts_per_task_group=null", *pooled[:2], "model.moe.top_k=2"])
