from dataclasses import replace

import pytest
import torch

from distmoe.models.config import ModelConfig
from distmoe.models.routed_positions import token_context
from tests.unit.models.samples import GATES, loss_of, make_batch, make_model, model_config, moe_config

TOKEN_GATE = moe_config("token", layers="all")


@pytest.fixture(params=["post", "pre"])
def norm(request: pytest.FixtureRequest) -> str:
    return request.param


def test_tokens_know_their_sequence_and_task() -> None:
    """Rows of 2 and 3 tokens, padded to 3: flat positions 0 1 . 3 4 5."""
    batch = make_batch((2, 3), (2, 0))
    assert batch.token_index_T.tolist() == [0, 1, 3, 4, 5]
    context = token_context(batch)
    assert context.sequence_ids_T.tolist() == [0, 0, 1, 1, 1]
    assert context.task_ids_T.tolist() == [2, 2, 0, 0, 0]
    assert context.num_sequences == 2


def test_padding_is_never_routed() -> None:
    batch = make_batch(extra_padding=4)
    routings = make_model(model_config(TOKEN_GATE))(batch).routings
    assert [routing.expert_ids_TK.shape for routing in routings] == [(7 + 3 + 5 + 1, 1)] * 2


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("gate", GATES)
def test_extra_padding_changes_nothing(gate: str, pooling: str, norm: str) -> None:
    model = make_model(model_config(moe_config(gate, layers="all"), pooling=pooling, norm=norm))
    plain, padded = model(make_batch()), model(make_batch(extra_padding=4))
    torch.testing.assert_close(plain.logits_BC, padded.logits_BC, atol=1e-5, rtol=1e-5)
    for one, other in zip(plain.routings, padded.routings, strict=True):
        assert torch.equal(one.expert_ids_TK, other.expert_ids_TK)


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("gate", GATES)
def test_an_example_does_not_depend_on_the_others_or_their_order(gate: str, top_k: int) -> None:
    model = make_model(model_config(moe_config(gate, layers="all", top_k=top_k)), partition=[[0, 1], [2]])
    lengths, task_ids = (6, 6, 6, 6), (0, 1, 2, 1)
    together = model(make_batch(lengths, task_ids)).logits_BC
    order = [2, 0, 3, 1]
    batch = make_batch(lengths, task_ids)
    shuffled = replace(
        batch,
        input_ids_BS=batch.input_ids_BS[order],
        token_type_ids_BS=batch.token_type_ids_BS[order],
        task_ids_B=batch.task_ids_B[order],
    )
    torch.testing.assert_close(model(shuffled).logits_BC, together[order], atol=1e-5, rtol=1e-5)
    for row in range(4):
        alone = replace(
            make_batch((6,), (task_ids[row],)),
            input_ids_BS=batch.input_ids_BS[row : row + 1],
            token_type_ids_BS=batch.token_type_ids_BS[row : row + 1],
        )
        torch.testing.assert_close(model(alone).logits_BC[0], together[row], atol=1e-5, rtol=1e-5)


def test_with_a_capacity_an_example_does_depend_on_the_others() -> None:
    """Recorded, not wished for: it is the price of a capacity, and shows that the test above can fail."""
    moe = moe_config("token", layers="all", capacity_factor=0.3)
    model = make_model(model_config(moe))
    lengths = (12,) * 4
    together = model(make_batch(lengths, (0, 1, 2, 1))).logits_BC
    first = make_batch(lengths, (0, 1, 2, 1))
    last = replace(
        make_batch((12,), (1,)),
        input_ids_BS=first.input_ids_BS[3:],
        token_type_ids_BS=first.token_type_ids_BS[3:],
    )
    assert (model(last).logits_BC[0] - together[3]).abs().max() > 1e-3


def test_a_placeholder_row_reaches_no_expert_and_leaves_zero_gradients() -> None:
    """What a rank without examples runs: one attended token, weight 0, no routed token."""
    model = make_model(model_config(TOKEN_GATE)).train()
    batch = make_batch((1,), (0,))
    placeholder = replace(
        batch,
        token_index_T=batch.token_index_T[:0],
        loss_weights_B=torch.zeros(1),
        example_mask_B=torch.zeros(1, dtype=torch.bool),
    )
    output = model(placeholder)
    assert all(routing.expert_ids_TK.shape == (0, 1) for routing in output.routings)
    (loss_of(model, placeholder) + sum(routing.probs_TE.sum() for routing in output.routings)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.count_nonzero() == 0, name


@pytest.mark.parametrize("gate", [*GATES, None])
def test_every_parameter_gets_a_gradient_also_of_absent_tasks_and_unused_experts(gate: str | None) -> None:
    moe = None if gate is None else moe_config(gate, layers="all", shared_expert=True)
    model = make_model(model_config(moe)).train()
    loss_of(model, make_batch((3,), (0,))).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("gate", ["token", "task", None])
def test_activation_checkpointing_changes_neither_loss_nor_gradients(gate: str | None, norm: str) -> None:
    """Dropout is on: what is recomputed must draw the same masks again."""

    def run(activation_checkpointing: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
        moe = None if gate is None else moe_config(gate)
        config = model_config(
            moe,
            num_layers=3,
            norm=norm,
            dropout=0.2,
            attention_dropout=0.2,
            activation_checkpointing=activation_checkpointing,
        )
        model = make_model(config).train()
        torch.manual_seed(3)
        loss = loss_of(model, make_batch())
        loss.backward()
        return loss.detach(), [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    plain_loss, plain = run(False)
    loss, gradients = run(True)
    assert torch.equal(loss, plain_loss)
    assert len(gradients) == len(plain) > 20
    for one, other in zip(gradients, plain, strict=True):
        assert torch.equal(one, other)


def test_logits_are_float32_in_bf16_models() -> None:
    model = make_model(model_config(TOKEN_GATE)).bfloat16()
    output = model(make_batch())
    assert output.logits_BC.dtype == torch.float32
    assert output.routings[0].probs_TE.dtype == torch.float32


@pytest.mark.parametrize("config", [model_config(TOKEN_GATE), model_config(None), model_config(TOKEN_GATE, norm="pre")])
def test_logits_are_finite_and_differ_between_tasks(config: ModelConfig) -> None:
    model = make_model(config)
    one, other = (model(make_batch((5,), (task,))).logits_BC[0, :2] for task in (0, 1))
    assert one.isfinite().all()
    assert (one - other).abs().max() > 1e-3
