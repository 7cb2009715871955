"""The published blocks by their formulas."""

from __future__ import annotations

import torch

from distmoe.nn.conditional import TaskConditioner
from distmoe.nn.conditional.generator import GeneratorFactory
from distmoe.nn.conditional.published import PublishedBlock, PublishedChain, PublishedTopAdapter
from tests.unit.nn.conditional.samples import REPO, TASK_IDS_B, TASKS, B, D, SmallEncoder, states, stirred, trained

GENERATORS = GeneratorFactory("linear", TASKS, D, zero=False)


def conditioner() -> TaskConditioner:
    return trained(TaskConditioner(TASKS, D, published=True))  # type: ignore[return-value]


def test_the_block_is_a_modulated_linear_bottleneck() -> None:
    block, tasks = trained(PublishedBlock(D, GENERATORS)), conditioner()
    conditioning = tasks(TASK_IDS_B)
    result = block(states(), conditioning)
    for row in range(B):
        z = tasks.projection(tasks.z_Tk[TASK_IDS_B[row]])
        generated = block.generator.weight @ block.projection(z) + block.generator.bias
        modulated = (1 + generated[:D]) * states()[row] + generated[D:]
        expected = block.up(block.down(modulated))
        torch.testing.assert_close(result[row], expected, atol=1e-5, rtol=1e-5)
    assert block.down.out_features == D // 3


def test_the_top_adapter_normalises_block_and_attention_state() -> None:
    adapter, conditioning = (
        trained(PublishedTopAdapter(D, layer_norm_eps=1e-12, generators=GENERATORS)),
        conditioner()(TASK_IDS_B),
    )
    h, a = states(), states(seed=5)
    assert torch.equal(adapter(h, a, conditioning), adapter.norm(adapter.block(h, conditioning) + a, conditioning))


def test_the_chain_adds_each_state_to_what_it_carries() -> None:
    chain, conditioning = trained(PublishedChain(D, 3, GENERATORS)), conditioner()(TASK_IDS_B)
    h = [states(seed=seed) for seed in range(3)]
    f = torch.zeros_like(h[0])
    for block, state in zip(chain.blocks, h, strict=True):
        f = block(state + f, conditioning)
    torch.testing.assert_close(chain(h, conditioning), f, atol=0, rtol=0)


def test_alignment_reads_the_table_and_layers_read_its_projection() -> None:
    encoder = stirred(SmallEncoder(REPO))
    conditioning = encoder.conditioner(TASK_IDS_B)
    z_Tk = encoder.conditioner.z_Tk
    assert torch.equal(conditioning.input_z_Tk, z_Tk)
    assert torch.equal(conditioning.z_Tk, encoder.conditioner.projection(z_Tk))
    gamma, beta = (z_Tk[TASK_IDS_B] @ encoder.alignment.generator.weight.T + encoder.alignment.generator.bias).chunk(
        2, -1
    )
    expected = (1 + gamma)[:, None] * states() + beta[:, None]
    torch.testing.assert_close(encoder.alignment(states(), conditioning), expected, atol=1e-6, rtol=1e-6)
