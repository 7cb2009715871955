"""One process against several ranks: the same model, the same union batch, every number compared.

The *reference* is plain torch on one process that hosts every task group: the union of all ranks' examples, AdamW and
gradient clipping. The *ranks* run the same examples through :mod:`distmoe.engine`, each on a rank that hosts its task.
Compared are, at every step, loss and gradient norm, at the first step every gradient, and after the last step every
fp32 master weight and both moments.

Why eps is 1e-5: the gradient of an attention key's bias is zero in exact arithmetic; Adam would blow its rounding noise
(1e-8) up to a full step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from distmoe.data.batch import NO_LOSS, TaskBatch
from distmoe.engine.config import OptimizerConfig
from distmoe.models.build import build_model
from distmoe.models.config import ModelConfig
from distmoe.models.decoder_config import DecoderConfig
from distmoe.models.decoder_shape import decoder_shape
from distmoe.models.freezing import Freeze
from distmoe.models.parameters import parameter_roles
from distmoe.models.shape import EncoderShape, ModelShape
from distmoe.models.tensor_parallel import cut_over_tensor_ranks
from distmoe.moe.config import AuxiliaryLossConfig, GateConfig, MoEConfig
from distmoe.nn.conditional.config import ConditionalConfig
from distmoe.nn.conditional.module import conditional_parameters
from distmoe.nn.init import init_normal_
from distmoe.parallel.placement import Placement, place
from distmoe.parallel.process_groups import create, single_process
from distmoe.tasks import TaskGrouping, TaskSet, TaskSpec
from distmoe.training.objective import Objective

SEED, STEPS, VOCABULARY = 3, 5, 23
WEIGHTS = (4.0, 2.0, 1.0, 1.0)  # mixture weights of the four tasks: unequal spans when partitioned

SHAPE = EncoderShape(
    vocab_size=VOCABULARY + 1,
    pad_token_id=0,
    hidden_size=16,
    num_layers=2,
    num_heads=4,
    intermediate_size=32,
    max_positions=8,
)
TASKS = TaskSet(
    (
        TaskSpec(name="a", kind="classification", metric="accuracy", labels=("x", "y")),
        TaskSpec(name="b", kind="classification", metric="accuracy", labels=("x", "y", "z")),
        TaskSpec(name="c", kind="regression", metric="pearson"),
        TaskSpec(name="d", kind="classification", metric="accuracy", labels=("x", "y")),
    )
)
# The same four tasks for a decoder: two answer a prompt, two are plain text.
TOKEN_TASKS = TaskSet(
    tuple(
        TaskSpec(name=name, kind=kind, metric="token_accuracy")  # type: ignore[arg-type]
        for name, kind in zip("abcd", ("generation", "language_modeling") * 2, strict=True)
    )
)

ONE = (((0, 1, 2, 3),),) * 2
TWO = (((0, 1), (2, 3)),) * 2
THREE = (((0, 1), (2,), (3,)),) * 2
TREE = (((0, 1, 2, 3),), ((0, 1), (2, 3)))


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """One training run; the fields of the second part do not change its numbers."""

    name: str
    partitions: tuple = ONE
    unit: str = "ffn"
    gate: str = "token"
    top_k: int = 2
    num_experts: int = 12  # per layer; each task group's share is dealt to ep_size ranks
    accumulation: int = 1
    clipping: float = 0.1
    weight_decay: float = 0.05
    losses: AuxiliaryLossConfig = field(default_factory=lambda: AuxiliaryLossConfig(balance=0.1, z=0.01))
    shared_expert: bool = False
    checkpointing: bool = False
    dense: bool = False
    freeze: Freeze = "none"
    conditional: dict[str, Any] | None = None
    head: Literal["tied", "shared", "per_task"] | None = None  # of a decoder; None: an encoder
    vocab_size: int = VOCABULARY + 1
    skipped_steps: tuple[int, ...] = ()
    steps: int = STEPS

    num_ranks: int = 2
    tensor: int = 1
    sequence: bool = False  # positions are dealt to tensor ranks
    ep_size: int = 1
    mode: str = "colocated"
    config: dict[str, Any] = field(default_factory=lambda: zero(1))
    idle_rank: int | None = None  # has no example at all
    by_task: bool = True  # examples of a task stay on one rank: ranks with disjoint tasks

    @property
    def num_data_ranks(self) -> int:
        return self.num_ranks // self.tensor

    @property
    def precision(self) -> str:
        return next((kind for kind in ("bf16", "fp16") if kind in self.config), "fp32")


def zero(stage: int, **sections: Any) -> dict[str, Any]:
    """A DeepSpeed configuration; keywords with a dictionary are sections, others keys of zero_optimization."""
    top = {key: value for key, value in sections.items() if isinstance(value, dict) and key != "offload_optimizer"}
    return {
        "zero_optimization": {"stage": stage} | {key: value for key, value in sections.items() if key not in top}
    } | top


BF16 = {"enabled": True}
FP16 = {"enabled": True, "loss_scale": 0, "initial_scale_power": 8}
OFFLOAD = {"device": "cpu"}
# Every conditional module in every layer, on task sets that are disjoint between ranks.
COND: dict[str, Any] = {
    "embedding_size": 3,
    "attention": {"layers": "all", "block_side": 3, "max_length": 5},
    "layer_norm": {"layers": "all"},
    "bottleneck": {"layers": "all"},
}


def grouping_of(case: Case) -> TaskGrouping:
    return TaskGrouping.from_partitions(len(TASKS), () if case.dense else case.partitions)


def placement_of(case: Case, num_ranks: int | None = None) -> Placement:
    return place(
        grouping_of(case),
        WEIGHTS,
        num_ranks=num_ranks or case.num_data_ranks,
        ep_size=case.ep_size,
        mode=case.mode,  # type: ignore[arg-type]
    )


def build(case: Case, hosting: Sequence[Any]) -> nn.Module:
    moe: MoEConfig | None
    if case.dense:
        moe = None
    elif case.unit == "block":
        moe = MoEConfig(layers="all", unit="block", experts_per_task_group=1)
    else:
        moe = MoEConfig(
            layers="all",
            num_experts=case.num_experts,
            top_k=case.top_k,
            expert_size=8,
            gate=GateConfig(kind=case.gate, noise="none"),  # type: ignore[arg-type]
            shared_expert=case.shared_expert,
            losses=case.losses,
        )
    config = ModelConfig(
        moe=moe,
        dropout=0.0,
        attention_dropout=0.0,
        init_std=0.2,
        activation_checkpointing=case.checkpointing,
        freeze=case.freeze,
        conditional=None if case.conditional is None else ConditionalConfig.model_validate(case.conditional),
        **_decoder_keys(case.head),
    )
    shape: ModelShape = replace(SHAPE, vocab_size=case.vocab_size)
    if case.head is not None:
        shape = decoder_shape(config, case.vocab_size, 0)
    tasks = tasks_of(case)
    model = build_model(config, shape=shape, tasks=tasks, grouping=grouping_of(case), hosting=hosting, seed=SEED)
    if case.conditional is not None:
        _move_conditional(model)
    return model


def tasks_of(case: Case) -> TaskSet:
    return TASKS if case.head is None else TOKEN_TASKS


def _decoder_keys(head: str | None) -> dict[str, Any]:
    """Two query heads on each key-value head, with everything that a decoder's attention may have."""
    if head is None:
        return {}
    sizes = {key: getattr(SHAPE, key) for key in ("hidden_size", "num_layers", "num_heads", "intermediate_size")}
    decoder = {"num_kv_heads": 2, "qk_norm": True, "attention_bias": True, "head": head}
    return sizes | {"family": "decoder", "max_positions": SHAPE.max_positions, "decoder": DecoderConfig(**decoder)}


@torch.no_grad()
def _move_conditional(model: nn.Module) -> None:
    """Away from the identity, where most of their gradients would be zero."""
    parameters = dict(model.named_parameters())
    for name in conditional_parameters(model):
        init_normal_(parameters[name], seed=SEED, name=name, std=0.1)


def optimizer_config(case: Case) -> OptimizerConfig:
    return OptimizerConfig(
        lr=2e-3,
        eps=1e-5,
        weight_decay=case.weight_decay,
        gradient_clipping=case.clipping,
        gate_lr_scale=5.0,
        head_lr_scale=2.0,
    )


def lr_factor(case: Case, step: int) -> float:
    return 1.0 - 0.5 * step / case.steps


@dataclass(frozen=True)
class Example:
    ids: tuple[int, ...]
    task: int
    label: float
    weight: float
    rank: int


def examples(case: Case, step: int, micro: int) -> list[Example]:
    """The union batch of one micro-step: nine examples, each assigned to a rank that hosts its task."""
    generator = torch.Generator().manual_seed(1000 * step + micro)
    placement = None if case.dense else placement_of(case)

    def draw(high: int) -> int:
        return int(torch.randint(high, (1,), generator=generator))

    found = []
    for index in range(9):
        task = draw(len(TASKS))
        hosts = [
            rank
            for rank in range(case.num_data_ranks)
            if rank != case.idle_rank and (placement is None or task in placement.hosted_tasks(rank))
        ]
        spec = TASKS[task]
        label = torch.randn((), generator=generator).item() if spec.is_regression else float(draw(spec.num_outputs))
        ids = tuple(1 + draw(VOCABULARY - 1) for _ in range(2 + draw(6)))
        rank = hosts[(task if case.by_task else index) % len(hosts)]
        found.append(Example(ids, task, label, 0.05 + 0.02 * draw(5), rank))
    return found


def batch_of(found: Sequence[Example], scale: float, *, tokens: bool = False) -> TaskBatch:
    """Pads; no example at all gives the placeholder row. With ``tokens``, the second half of each row is predicted."""
    rows = list(found) or [Example((1,), 0, 0.0, 0.0, -1)]
    length = max(len(example.ids) for example in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.int64)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for row, example in enumerate(rows):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        mask[row, : len(example.ids)] = True
    real = torch.tensor([bool(found)] * len(rows))
    labels = torch.full_like(ids, NO_LOSS)
    for row, example in enumerate(rows):
        first = len(example.ids) // 2
        labels[row, first : len(example.ids) - 1] = torch.tensor(example.ids[first + 1 :])
    return TaskBatch(
        input_ids_BS=ids,
        attention_mask_BS=mask,
        token_type_ids_BS=torch.zeros_like(ids),
        task_ids_B=torch.tensor([example.task for example in rows]),
        labels_B=torch.tensor([example.label for example in rows]),
        loss_weights_B=torch.tensor([example.weight * scale for example in rows]),
        example_ids_B=torch.arange(len(rows)),
        example_mask_B=real,
        token_index_T=(mask & real[:, None]).flatten().nonzero().flatten(),
        labels_BS=labels if tokens else None,
    )


@dataclass
class Trace:
    """What one run did: per step, then per tensor of the model."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    moments: dict[str, Tensor] = field(default_factory=dict)


def reference(case: Case) -> Trace:
    """Plain torch on one process."""
    model = build(case, single_process(grouping_of(case)).hosting)
    objective = Objective(tasks_of(case), grouping_of(case), weights=None if case.dense else case.losses)
    config, roles, trace = optimizer_config(case), parameter_roles(model), Trace()
    scales = {"gate": config.gate_lr_scale, "head": config.head_lr_scale}
    optimizer = torch.optim.AdamW(
        [
            {
                "params": [parameter],
                "scale": scales.get(roles[name].kind, 1.0),
                "weight_decay": config.weight_decay if roles[name].decay else 0.0,
            }
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        ],
        lr=config.lr,
        betas=(config.betas[0], config.betas[1]),
        eps=config.eps,
    )
    for step in range(case.steps):
        if step in case.skipped_steps:
            continue
        total = 0.0
        for micro in range(case.accumulation):
            batch = batch_of(examples(case, step, micro), scale=case.accumulation, tokens=case.head is not None)
            loss = objective(model(batch), batch).total / case.accumulation
            loss.backward()
            total += loss.item()
        if step == 0:
            trace.gradients = {
                name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.requires_grad
            }
        norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.requires_grad])
        if case.clipping:
            nn.utils.clip_grads_with_norm_(list(model.parameters()), case.clipping, norm)
        for param_group in optimizer.param_groups:
            param_group["lr"] = config.lr * param_group["scale"] * lr_factor(case, step)
        optimizer.step()
        optimizer.zero_grad()
        trace.losses.append(total)
        trace.norms.append(float(norm))
    trace.weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trace.moments = {
        f"{key}/{name}": optimizer.state[parameter][key]
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        for key in ("exp_avg", "exp_avg_sq")
    }
    return trace


def make_engine(case: Case) -> tuple[Any, Any, Objective, Any]:
    """Engine, placement, objective and process groups of this rank; torch.distributed is initialised."""
    from distmoe.engine.ds_config import resolve
    from distmoe.engine.initialize import initialize

    if "fp16" in case.config:
        # DeepSpeed allows fp16 on CPUs with special instructions only; torch computes it on every CPU.
        from deepspeed.accelerator import get_accelerator

        get_accelerator().is_fp16_supported = lambda: True
    num_data_ranks = dist.get_world_size() // case.tensor
    placement = placement_of(case, num_data_ranks)
    process_groups = create(placement, tensor=case.tensor)
    settings = resolve(
        case.config,
        optimizer=optimizer_config(case),
        micro_batch_size=9,
        accumulation_steps=case.accumulation,
        num_ranks=num_data_ranks,
        device_type="cpu",
    )
    model = build(case, process_groups.hosting)
    if process_groups.tensor is not None:
        cut_over_tensor_ranks(model, process_groups.tensor, sequence=case.sequence)
    engine = initialize(
        model,
        settings=settings,
        optimizer=optimizer_config(case),
        process_groups=process_groups,
        placement=None if case.dense else placement,
    )
    objective = Objective(
        tasks_of(case),
        grouping_of(case),
        weights=None if case.dense else case.losses,
        world_size=num_data_ranks,
        all_reduce=partial(_all_reduce, process_group=process_groups.data),
    )
    return engine, placement, objective, process_groups


def _all_reduce(tensor: Tensor, process_group: Any) -> Tensor:
    dist.all_reduce(tensor, group=process_group)
    return tensor


def train_steps(case: Case, engine: Any, objective: Objective, steps: Sequence[int], trace: Trace) -> None:
    """Runs optimizer steps on this rank; ``trace.losses`` holds the mean over ranks, the objective's value."""
    rank, world = dist.get_rank() // case.tensor, dist.get_world_size() // case.tensor
    for step in steps:
        total = torch.zeros(())
        for micro in range(case.accumulation):
            own = [example for example in examples(case, step, micro) if example.rank % world == rank]
            batch = batch_of(own, scale=world * case.accumulation, tokens=case.head is not None)
            loss = objective(engine(batch), batch)
            if step in case.skipped_steps and micro == case.accumulation - 1:
                engine.skip_step()
                break
            engine.backward(loss.total)
            # Auxiliary losses have the global value on every rank, task losses this rank's share.
            total += loss.total.detach() / case.accumulation
        else:
            if step == 0 and not trace.gradients:
                trace.gradients = own_gradients(engine)
            result = engine.step(lr_factor(case, step))
            dist.all_reduce(total)
            trace.losses.append(total.item() / dist.get_world_size())  # equal on tensor neighbours
            trace.norms.append(result.grad_norm)


def own_gradients(engine: Any) -> dict[str, Tensor]:
    """This rank's averaged gradients before clipping: its part of the experts, all of everything else."""
    gradients = {}
    scale = getattr(engine._ds.optimizer, "loss_scale", 1.0)  # of fp16
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        if hasattr(parameter, "ds_id"):
            gradient = parameter._z3_optimizer.get_fp32_grad_for_param(parameter)
        elif hasattr(parameter, "_hp_mapping"):
            gradient = parameter.get_full_hp_grad()
        else:
            gradient = parameter.grad
        gradients[name] = gradient.detach().float().div(scale).view(engine.views[name].local_shape)
    return gradients


def run_cases(rank: int, cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Worker: trains every case and returns, per case, this rank's trace, fragments and layout."""
    from distmoe.engine.distributed import init_distributed

    init_distributed(timeout_minutes=5)
    answers = []
    for case in cases:
        engine, _, objective, process_groups = make_engine(case)
        trace = Trace()
        engine.train_mode()
        train_steps(case, engine, objective, range(case.steps), trace)
        answers.append(
            {
                "trace": trace,
                "views": engine.views,
                "conditional": {
                    name: engine.module.get_parameter(name).detach().clone()
                    for name in conditional_parameters(engine.module)
                },
                "fragments": [(f.key, f.view, f.lo, f.data.clone()) for f in engine.fragments()],
                "optimizer": type(engine._ds.optimizer).__name__,
            }
        )
        engine.destroy()
        process_groups.destroy()
    return answers


def largest_differences(case: Case, answers: Sequence[dict[str, Any]], expected: Trace) -> dict[str, float]:
    """Largest absolute difference of losses, norms, gradients, weights and moments over all ranks.

    The fragments of all ranks must cover every element of every global tensor, weights and moments; copies count.
    """
    worst = {"loss": 0.0, "norm": 0.0, "gradient": 0.0, "weight": 0.0, "moment": 0.0}

    def note(kind: str, found: Tensor, wanted: Tensor) -> None:
        assert found.shape == wanted.shape
        assert found.isfinite().all()
        if found.numel():
            worst[kind] = max(worst[kind], float((found - wanted).abs().max()))

    covered = {
        f"{kind}/{name}": torch.zeros(weight.numel(), dtype=torch.bool)
        for name, weight in expected.weights.items()
        for kind in (("fp32", "exp_avg", "exp_avg_sq") if name in expected.gradients else ("frozen",))
    }
    for answer in answers:
        trace, views = answer["trace"], answer["views"]
        note("loss", torch.tensor(trace.losses), torch.tensor(expected.losses))
        note("norm", torch.tensor(trace.norms), torch.tensor(expected.norms))
        for name, gradient in trace.gradients.items():
            note("gradient", gradient, views[name].take(expected.gradients[name]))
        for key, view, lo, data in answer["fragments"]:
            kind, name = key.split("/", 1)
            if kind == "buffer":
                continue
            whole = expected.weights[name] if kind in ("fp32", "frozen") else expected.moments[key]
            note(
                "moment" if kind.startswith("exp") else "weight",
                data,
                view.take(whole).flatten()[lo : lo + data.numel()],
            )
            covered[key][view.take(torch.arange(whole.numel()).view(whole.shape)).flatten()[lo : lo + data.numel()]] = (
                True
            )
    assert all(mask.all() for mask in covered.values()), "some elements belong to no rank"
    return worst


def largest_gradient_error(answers: Sequence[dict[str, Any]], expected: Trace) -> float:
    """Largest relative error of a tensor's first gradient, for low precisions; tiny gradients are left out.

    A gradient averaged over the wrong ranks is wrong by a factor, far above rounding.
    """
    largest = max(float(gradient.norm()) for gradient in expected.gradients.values())
    worst = 0.0
    for answer in answers:
        for name, gradient in answer["trace"].gradients.items():
            wanted = answer["views"][name].take(expected.gradients[name])
            if wanted.norm() > 0.01 * largest:
                worst = max(worst, float((gradient - wanted).norm() / wanted.norm()))
    return worst
