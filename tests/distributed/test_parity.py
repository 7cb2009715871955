"""Training on several ranks equals training on one process; see :mod:`tests.distributed.parity`.

One start of 1, 2 and 4 ranks runs all cases of that size, because starting DeepSpeed costs more than training them.
``-m slow`` adds the full cross product of stage, ep_size, task groups, placement and accumulation.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import Any

import pytest
import torch

from distmoe.engine.ds_config import resolve
from distmoe.engine.supported import TABLE, Row, combination, lookup
from distmoe.moe.config import AuxiliaryLossConfig
from tests.distributed.harness import run_ranks
from tests.distributed.parity import (
    BF16,
    COND,
    FP16,
    OFFLOAD,
    ONE,
    THREE,
    TREE,
    TWO,
    Case,
    largest_differences,
    largest_gradient_error,
    optimizer_config,
    placement_of,
    reference,
    run_cases,
    zero,
)

pytestmark = pytest.mark.timeout(900)  # one start of the ranks trains all cases of a size

TOLERANCE = 1e-5
# Relative error of a gradient: bf16 keeps 8 bits, fp16 11; a forward and backward pass adds up a few of them.
ROUNDING = {"bf16": 0.06, "fp16": 0.01}
# Releases every parameter after use, as large models do; DeepSpeed keeps small ones otherwise.
Z3 = {"stage3_param_persistence_threshold": 0}
SPLIT = {"mode": "partitioned", "gate": "task", "top_k": 1}
LOW = {"gate": "task", "top_k": 1}  # task-level routes do not flip by rounding
FIXED = {"gate": "fixed", "top_k": 1}
BF16_SUMS = {"grad_accum_dtype": "bf16"}
WHOLE = {"unit": "block", "losses": AuxiliaryLossConfig()}  # a layer per task group
HALF = {"conditional": COND, "freeze": "lower_half"}

CASES = (
    # one rank
    Case(name="zero0 routed", num_ranks=1, config=zero(0)),
    Case(name="zero1 routed, two micro-batches", num_ranks=1, config=zero(1), accumulation=2, partitions=TREE),
    Case(name="zero0 whole layers", num_ranks=1, **WHOLE, partitions=TREE, config=zero(0)),
    # two ranks
    Case(name="zero1 whole layers, disjoint tasks", **WHOLE, partitions=TREE, accumulation=2),
    Case(name="zero1 whole layers partitioned", **WHOLE, mode="partitioned", partitions=TWO),
    Case(name="zero2 whole layers, a rank without tokens", **WHOLE, partitions=THREE, idle_rank=1, config=zero(2)),
    Case(name="zero0 dense", dense=True, config=zero(0)),
    Case(name="zero1, disjoint tasks, two micro-batches", accumulation=2),
    Case(name="zero1, no clipping", clipping=0.0, weight_decay=0.0, by_task=False),
    Case(name="zero1 overlap, a rank without tokens", idle_rank=1, config=zero(1, overlap_comm=True)),
    Case(name="zero1 partitioned", mode="partitioned", partitions=TWO, gate="token"),
    Case(name="zero1 partitioned offload", **SPLIT, partitions=TWO, config=zero(1, offload_optimizer=OFFLOAD)),
    Case(name="zero1 skipped step", skipped_steps=(2,), accumulation=2),
    Case(
        name="zero2 ep2, most experts without tokens", ep_size=2, partitions=TWO, gate="fixed", top_k=1, config=zero(2)
    ),
    Case(
        name="zero2 ep2, small buckets, overlap", ep_size=2, config=zero(2, reduce_bucket_size=500, overlap_comm=True)
    ),
    Case(
        name="zero2, a rank without tokens, recomputation",
        idle_rank=0,
        checkpointing=True,
        accumulation=2,
        config=zero(2),
    ),
    Case(name="zero2 skipped step", skipped_steps=(1,), accumulation=2, config=zero(2)),
    Case(name="zero3 ep2, two micro-batches", ep_size=2, accumulation=2, config=zero(3, **Z3)),
    Case(name="zero3, fixed routes, overlap", gate="fixed", top_k=1, config=zero(3, overlap_comm=True)),
    Case(name="zero3 skipped step", skipped_steps=(2,), accumulation=2, config=zero(3)),
    Case(name="zero1, frozen embeddings", freeze="embeddings", ep_size=2),
    Case(name="zero3, frozen embeddings", freeze="embeddings", ep_size=2, config=zero(3, **Z3)),
    Case(name="zero1, frozen body", freeze="body", **LOW, ep_size=2),
    Case(name="zero1 partitioned, frozen body", freeze="body", **SPLIT, partitions=TWO),
    Case(name="zero2, frozen body", freeze="body", **LOW, ep_size=2, config=zero(2)),
    Case(name="zero3, frozen body", freeze="body", **LOW, ep_size=2, config=zero(3, **Z3)),
    Case(name="zero1 dense", dense=True, config=zero(1)),
    Case(name="zero2 dense", dense=True, config=zero(2)),
    Case(name="zero3 dense", dense=True, config=zero(3, **Z3)),
    Case(name="zero1 bf16", **FIXED, config=zero(1, bf16=BF16), accumulation=2),
    Case(name="zero1 bf16 partitioned", **SPLIT, partitions=TWO, config=zero(1, bf16=BF16)),
    Case(name="zero1 bf16 sums in bf16", **LOW, config=zero(1, bf16=BF16, data_types=BF16_SUMS)),
    Case(name="zero1 bf16 offload", **LOW, config=zero(1, bf16=BF16, offload_optimizer=OFFLOAD)),
    Case(name="zero2 fp32 offload", **LOW, config=zero(2, offload_optimizer=OFFLOAD)),
    Case(name="zero2 bf16 offload", **LOW, ep_size=2, config=zero(2, bf16=BF16, offload_optimizer=OFFLOAD)),
    Case(name="zero2 bf16", **LOW, ep_size=2, config=zero(2, bf16=BF16), accumulation=2),
    Case(name="zero2 bf16 sums in bf16", **LOW, config=zero(2, bf16=BF16, data_types=BF16_SUMS)),
    Case(name="zero3 bf16", **LOW, ep_size=2, config=zero(3, bf16=BF16, **Z3)),
    Case(name="zero1 fp16", **LOW, config=zero(1, fp16=FP16)),
    Case(name="zero1 fp16 partitioned", **SPLIT, partitions=TWO, config=zero(1, fp16=FP16)),
    Case(name="zero2 fp16", **LOW, ep_size=2, config=zero(2, fp16=FP16), accumulation=2),
    Case(name="zero3 fp16", **LOW, config=zero(3, fp16=FP16)),
    Case(name="zero0 dense conditional", dense=True, conditional=COND, config=zero(0)),
    Case(name="zero1 conditional, lower half frozen", **HALF, ep_size=2, accumulation=2, checkpointing=True),
    Case(name="zero1 conditional partitioned, lower half frozen", **HALF, mode="partitioned", partitions=TWO),
    Case(name="zero2 conditional", conditional=COND, ep_size=2, config=zero(2), idle_rank=1),
    Case(name="zero3 conditional, lower half frozen", **HALF, ep_size=2, config=zero(3, **Z3)),
    Case(
        name="zero3 dense conditional, tables, from the first trainable layer",
        dense=True,
        freeze="lower_half",
        conditional={"condition_from": "first_trainable", "generator": "table", "attention": {"block_side": 3}},
        config=zero(3, **Z3),
    ),
    Case(name="zero2 bf16 conditional, lower half frozen", **LOW, **HALF, ep_size=2, config=zero(2, bf16=BF16)),
    Case(name="zero1 decoder ep2", head="tied", ep_size=2, partitions=TWO, accumulation=2, checkpointing=True),
    Case(name="zero1 decoder partitioned", head="per_task", mode="partitioned", partitions=TWO),
    Case(name="zero2 decoder ep2, a rank without tokens", head="per_task", ep_size=2, idle_rank=1, config=zero(2)),
    Case(name="zero3 decoder ep2, tied head", head="tied", ep_size=2, config=zero(3, **Z3)),
    # four ranks
    Case(name="zero1 tensor2, dense decoder", num_ranks=4, tensor=2, dense=True, head="tied"),
    Case(
        name="zero1 tensor2 partitioned tree, decoder, two micro-batches",
        num_ranks=4,
        tensor=2,
        mode="partitioned",
        head="per_task",
        partitions=TREE,
        accumulation=2,
    ),
    Case(
        name="zero2 tensor2 ep2, decoder, overlap, recomputation",
        num_ranks=4,
        tensor=2,
        ep_size=2,
        head="shared",
        partitions=TWO,
        checkpointing=True,
        shared_expert=True,
        config=zero(2, overlap_comm=True),
    ),
    Case(
        name="zero1 sequence2 ep2, encoder",
        num_ranks=4,
        tensor=2,
        sequence=True,
        ep_size=2,
        partitions=TWO,
        shared_expert=True,
    ),
    Case(name="zero1 tensor2 ep2 bf16", num_ranks=4, tensor=2, ep_size=2, **FIXED, config=zero(1, bf16=BF16)),
    Case(name="zero2 tensor2 ep2 bf16", num_ranks=4, tensor=2, ep_size=2, **FIXED, config=zero(2, bf16=BF16)),
    Case(name="zero1 conditional ep2", num_ranks=4, ep_size=2, conditional=COND, accumulation=2),
    Case(name="zero2 conditional ep4, lower half frozen", num_ranks=4, ep_size=4, **HALF, config=zero(2)),
    Case(name="zero1 ep4", num_ranks=4, ep_size=4, config=zero(1)),
    Case(name="zero2 ep4, two micro-batches", num_ranks=4, ep_size=4, accumulation=2, config=zero(2)),
    Case(
        name="zero2 ep2 colocated, 3 task groups",
        num_ranks=4,
        ep_size=2,
        partitions=THREE,
        config=zero(2),
        shared_expert=True,
    ),
    Case(
        name="zero3 ep2, task embedding",
        num_ranks=4,
        ep_size=2,
        gate="task_embedding",
        checkpointing=True,
        config=zero(3, **Z3),
    ),
    Case(
        name="zero1 partitioned, 3 unequal task groups",
        num_ranks=4,
        mode="partitioned",
        partitions=THREE,
        accumulation=2,
    ),
    Case(name="zero1 partitioned, 2 unequal task groups", num_ranks=4, mode="partitioned", partitions=TWO),
    Case(name="zero1 partitioned tree, two layouts", num_ranks=4, mode="partitioned", partitions=TREE),
    Case(name="zero1 partitioned ep2, two layouts", num_ranks=4, mode="partitioned", partitions=TREE, ep_size=2),
    Case(
        name="zero1 partitioned ep2, unequal expert sizes, small buckets",
        num_ranks=4,
        mode="partitioned",
        partitions=THREE,
        ep_size=2,
        config=zero(1, reduce_bucket_size=500),
    ),
    Case(
        name="zero1 bf16 partitioned, two layouts",
        num_ranks=4,
        **SPLIT,
        partitions=TREE,
        ep_size=2,
        accumulation=2,
        config=zero(1, bf16=BF16),
    ),
    Case(
        name="zero1 bf16 partitioned, unequal copies, sums in bf16",
        num_ranks=4,
        **SPLIT,
        partitions=TWO,
        config=zero(1, bf16=BF16, data_types=BF16_SUMS),
    ),
    Case(
        name="zero1 bf16 partitioned, unequal copies, offload",
        num_ranks=4,
        **SPLIT,
        partitions=TWO,
        config=zero(1, bf16=BF16, offload_optimizer=OFFLOAD),
    ),
)


def row_of(case: Case) -> Row:
    settings = resolve(
        case.config,
        optimizer=optimizer_config(case),
        micro_batch_size=9,
        accumulation_steps=case.accumulation,
        num_ranks=case.num_data_ranks,
        device_type="cpu",
    )
    return lookup(
        combination(
            settings,
            placement=placement_of(case),
            num_ranks=case.num_data_ranks,
            routed=not case.dense,
            tensor=case.tensor,
        )
    )


@lru_cache
def answers(cases: tuple[Case, ...]) -> list[list[dict[str, Any]]]:
    """Per case, the answers of all ranks."""
    by_rank = run_ranks(
        run_cases,
        cases[0].num_ranks,
        cases,
        init_process_group=False,
        timeout=60 + 3 * sum(case.steps for case in cases),
    )
    return [list(answer) for answer in zip(*by_rank, strict=True)]


def assert_parity(case: Case, found: list[dict[str, Any]]) -> None:
    expected = reference(case)
    worst = largest_differences(case, found, expected)
    print(f"{case.name}: " + ", ".join(f"{kind} {value:.1e}" for kind, value in worst.items()))
    if case.precision == "fp32":
        assert max(worst.values()) <= TOLERANCE, worst
    else:
        assert largest_gradient_error(found, expected) <= ROUNDING[case.precision]
        assert worst["norm"] <= ROUNDING[case.precision] * max(expected.norms)
        assert worst["loss"] <= ROUNDING[case.precision] * max(expected.losses)


@lru_cache
def same_size(num_ranks: int) -> tuple[Case, ...]:
    return tuple(case for case in CASES if case.num_ranks == num_ranks)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.num_ranks} ranks: {case.name}")
def test_ranks_train_like_one_process(case: Case) -> None:
    cases = same_size(case.num_ranks)
    assert_parity(case, answers(cases)[cases.index(case)])


@pytest.mark.parametrize("row", [row for row in TABLE if row.supported], ids=lambda row: row.conditions())
def test_every_supported_row_is_backed_by_a_parity_case(row: Row) -> None:
    covered = {(case.config["zero_optimization"]["stage"], case.precision) for case in CASES if row_of(case) is row}
    assert covered == set(product(row.stages or (), row.precisions or ()))


FULL = tuple(
    case
    for num_ranks, ep_size, stage, partitions, mode, accumulation, dense in product(
        (2, 4), (1, 2, 4), (0, 1, 2, 3), (ONE, TWO, THREE, TREE), ("colocated", "partitioned"), (1, 2), (False, True)
    )
    if ep_size <= num_ranks and not (dense and (partitions, mode, ep_size) != (ONE, "colocated", 1))
    for case in [
        Case(
            name=f"zero{stage} ep{ep_size} {len(partitions[0])}-{len(partitions[1])} {mode} gas{accumulation} {dense=}",
            num_ranks=num_ranks,
            ep_size=ep_size,
            num_experts=24 if ep_size == 4 else 12,
            config=zero(stage, **(Z3 if stage == 3 else {})),
            partitions=partitions,
            mode=mode,
            accumulation=accumulation,
            dense=dense,
        )
    ]
    if row_of(case).supported
)


DECODERS = (
    Case(name="zero0 dense decoder, tied head", dense=True, head="tied", config=zero(0)),
    Case(name="zero3 decoder, per-task heads", head="per_task", shared_expert=True, config=zero(3, **Z3)),
    Case(name="zero1 decoder ep2 tree", num_ranks=4, ep_size=2, head="shared", partitions=TREE, accumulation=2),
    Case(name="zero2 decoder ep4", num_ranks=4, ep_size=4, head="per_task", idle_rank=2, config=zero(2)),
    Case(name="zero1 decoder partitioned ep2", num_ranks=4, ep_size=2, head="tied", mode="partitioned", partitions=TWO),
)


TENSOR = (
    Case(name="zero1 tensor2, dense decoder", tensor=2, dense=True, head="shared"),
    Case(
        name="zero2 tensor2, decoder, per-task heads, odd vocabulary",
        tensor=2,
        head="per_task",
        partitions=TWO,
        vocab_size=25,
        config=zero(2),
    ),
    Case(name="zero1 tensor2, encoder, shared expert", tensor=2, shared_expert=True, checkpointing=True),
    Case(name="zero2 tensor2, frozen body", tensor=2, freeze="body", **LOW, config=zero(2)),
    Case(name="zero1 tensor2, frozen embeddings", tensor=2, head="tied", freeze="embeddings"),
    Case(name="zero1 tensor2, skipped step", tensor=2, head="tied", skipped_steps=(2,), accumulation=2),
    Case(name="zero1 tensor4, encoder, odd vocabulary", num_ranks=4, tensor=4, partitions=TREE, vocab_size=27),
    Case(name="zero1 tensor2, decoder tree", num_ranks=4, tensor=2, head="per_task", partitions=TREE, accumulation=2),
    Case(name="zero2 tensor2, dense encoder", num_ranks=4, tensor=2, dense=True, config=zero(2)),
    Case(
        name="zero1 tensor2 ep2, a data rank without tokens", num_ranks=4, tensor=2, ep_size=2, head="tied", idle_rank=1
    ),
    Case(
        name="zero2 tensor2 ep2, small buckets",
        num_ranks=4,
        tensor=2,
        ep_size=2,
        config=zero(2, reduce_bucket_size=500),
    ),
    Case(
        name="zero1 tensor2 bf16 partitioned",
        num_ranks=4,
        tensor=2,
        mode="partitioned",
        **FIXED,
        partitions=TWO,
        config=zero(1, bf16=BF16),
    ),
    Case(name="zero1 tensor2 partitioned, unequal", num_ranks=6, tensor=2, mode="partitioned", partitions=TWO),
)


SEQUENCE = (
    Case(
        name="zero1 sequence2, dense decoder, odd vocabulary",
        tensor=2,
        sequence=True,
        dense=True,
        head="tied",
        vocab_size=25,
    ),
    Case(
        name="zero2 sequence2, decoder, shared head, recomputation",
        tensor=2,
        sequence=True,
        head="shared",
        shared_expert=True,
        partitions=TWO,
        checkpointing=True,
        config=zero(2),
    ),
    Case(name="zero1 sequence2, frozen embeddings", tensor=2, sequence=True, freeze="embeddings", accumulation=2),
    Case(name="zero2 sequence2, frozen body", tensor=2, sequence=True, freeze="body", **LOW, config=zero(2)),
    Case(name="zero1 sequence4, dense encoder", num_ranks=4, tensor=4, sequence=True, dense=True),
    Case(name="zero1 sequence4, encoder tree", num_ranks=4, tensor=4, sequence=True, partitions=TREE),
    Case(name="zero1 sequence2, dense decoder", num_ranks=4, tensor=2, sequence=True, dense=True, head="shared"),
    Case(name="zero2 sequence2, dense encoder", num_ranks=4, tensor=2, sequence=True, dense=True, config=zero(2)),
    Case(
        name="zero1 sequence2 ep2, decoder, a data rank without tokens",
        num_ranks=4,
        tensor=2,
        sequence=True,
        ep_size=2,
        head="per_task",
        idle_rank=1,
        accumulation=2,
    ),
    Case(
        name="zero2 sequence2 ep2, encoder, shared expert, recomputation, small buckets, overlap",
        num_ranks=4,
        tensor=2,
        sequence=True,
        ep_size=2,
        partitions=TWO,
        shared_expert=True,
        checkpointing=True,
        config=zero(2, reduce_bucket_size=500, overlap_comm=True),
    ),
    Case(
        name="zero1 sequence2 partitioned, decoder, odd vocabulary",
        vocab_size=25,
        num_ranks=4,
        tensor=2,
        sequence=True,
        mode="partitioned",
        head="tied",
        partitions=TWO,
    ),
    Case(
        name="zero1 sequence2 ep2 bf16", num_ranks=4, tensor=2, sequence=True, ep_size=2, **FIXED,
        config=zero(1, bf16=BF16),
    ),
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("num_ranks", [2, 4, 6])
def test_full_cross_product(num_ranks: int) -> None:
    cases = tuple(case for case in (*FULL, *DECODERS, *TENSOR, *SEQUENCE) if case.num_ranks == num_ranks)
    for start in range(0, len(cases), 16):
        part = cases[start : start + 16]
        for case, found in zip(part, answers(part), strict=True):
            assert_parity(case, found)


LONG = (
    Case(name="zero1 conditional, lower half frozen", **LOW, **HALF, partitions=TWO, steps=100),
    Case(name="zero2 conditional ep2", **LOW, conditional=COND, ep_size=2, config=zero(2), steps=100),
    Case(name="zero2 conditional ep2", num_ranks=4, **LOW, conditional=COND, ep_size=2, config=zero(2), steps=100),
)


@pytest.mark.slow
@pytest.mark.parametrize("case", LONG, ids=lambda case: f"{case.num_ranks} ranks: {case.name}")
def test_conditional_modules_on_disjoint_tasks_stay_equal_on_all_ranks_for_a_hundred_steps(case: Case) -> None:
    found = answers((case,))[0]
    expected = reference(case)
    ranks = [answer["conditional"] for answer in found]
    assert ranks[0], "no conditional parameter was compared"
    assert all(torch.equal(own[name], ranks[0][name]) for own in ranks for name in ranks[0])
    worst = largest_differences(case, found, expected)
    print(f"{case.name}, {case.num_ranks} ranks: " + ", ".join(f"{key} {value:.1e}" for key, value in worst.items()))
    assert len(expected.losses) == 100
    assert max(worst["loss"], worst["gradient"]) <= TOLERANCE
