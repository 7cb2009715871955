"""A decoder sees no later token, no other document and no padding, and every parameter has a gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from distmoe.data.batch import TaskBatch
from distmoe.data.collate import placeholder
from distmoe.errors import ConfigError
from distmoe.models.decoder_config import DecoderConfig
from distmoe.models.parameters import parameter_roles
from distmoe.nn.conditional.config import ConditionalConfig
from distmoe.tasks import TaskGrouping
from distmoe.training.objective import Objective
from tests.unit.models.decoder_samples import TASKS, decoder_config, logits_of, make_decoder, token_batch
from tests.unit.models.samples import TASKS as LABEL_TASKS
from tests.unit.models.samples import make_model, model_config, moe_config

CLOSE = 1e-6
SPARSE = decoder_config(moe_config("token", layers="all", num_experts=6), decoder=DecoderConfig(num_kv_heads=2))


def rows_of(batch: TaskBatch, rows: list[int]) -> TaskBatch:
    lengths = batch.attention_mask_BS.sum(1)[rows].tolist()
    cut = token_batch(lengths, batch.task_ids_B[rows].tolist())
    cut.input_ids_BS.copy_(batch.input_ids_BS[rows, : max(lengths)])
    return cut


def test_a_token_sees_only_itself_and_what_is_before_it() -> None:
    model, batch = make_decoder(SPARSE), token_batch((7, 7))
    changed = replace(batch, input_ids_BS=batch.input_ids_BS.clone())
    changed.input_ids_BS[:, 4] = 49 - changed.input_ids_BS[:, 4]
    before, after = logits_of(model, batch), logits_of(model, changed)
    torch.testing.assert_close(before[:, :4], after[:, :4], atol=CLOSE, rtol=0)
    assert ((before[:, 4:] - after[:, 4:]).abs().amax(-1) > 1e-4).all()


def test_padding_and_other_rows_change_nothing() -> None:
    model, batch = make_decoder(SPARSE), token_batch((7, 3, 5, 1), extra_padding=2)
    together = logits_of(model, batch)
    for row, length in enumerate((7, 3, 5, 1)):
        alone = logits_of(model, rows_of(batch, [row]))
        torch.testing.assert_close(together[row, :length], alone[0], atol=CLOSE, rtol=0)


@pytest.mark.parametrize("window", [None, 3])
def test_packed_documents_are_as_if_alone(window: int | None) -> None:
    """Row 0 packs documents of 4 and 3 tokens, row 1 one of 5 and padding."""
    config = decoder_config(SPARSE.moe, decoder=DecoderConfig(num_kv_heads=2, sliding_window=window))
    model = make_decoder(config)
    packed = replace(
        token_batch((7, 5), (1, 1)),
        position_ids_BS=torch.tensor([[0, 1, 2, 3, 0, 1, 2], [0, 1, 2, 3, 4, 0, 0]]),
        segment_ids_BS=torch.tensor([[0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 1, 1]]),
    )
    apart = token_batch((4, 3, 5), (1, 1, 1))
    for row, (source, start, length) in enumerate(((0, 0, 4), (0, 4, 3), (1, 0, 5))):
        apart.input_ids_BS[row, :length] = packed.input_ids_BS[source, start : start + length]
    found, wanted = logits_of(model, packed), logits_of(model, apart)
    torch.testing.assert_close(found[0], torch.cat([wanted[0, :4], wanted[1, :3]]), atol=CLOSE, rtol=0)
    torch.testing.assert_close(found[1, :5], wanted[2, :5], atol=CLOSE, rtol=0)


@pytest.mark.parametrize("head", ["tied", "shared", "per_task"])
def test_absent_tasks_and_a_rank_without_tokens_give_zero_gradients_not_missing_ones(head: str) -> None:
    moe = moe_config("task", layers="all", num_experts=6, shared_expert=True)
    decoder = DecoderConfig(num_kv_heads=2, head=head, qk_norm=True, attention_bias=True)  # type: ignore[arg-type]
    model = make_decoder(decoder_config(moe, decoder=decoder), partition=[[0, 1], [2]]).train()
    grouping = TaskGrouping.from_partitions(3, [[[0, 1], [2]]] * 2)
    objective = Objective(TASKS, grouping, weights=None)
    for batch in (token_batch((5, 4), (0, 0)), placeholder(task_id=0, pad_token_id=0)):
        model.zero_grad()
        losses = objective(model(batch), batch)
        losses.total.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        assert all(gradient is not None for gradient in gradients.values())
        foreign = [gradient for name, gradient in gradients.items() if ".pools.g1." in name]
        assert len(foreign) == 4
        assert not any(gradient.any() for gradient in foreign)
        if head == "per_task":
            assert not gradients["heads.weight_MVD"][1:].any()
    assert losses.total.item() == 0
    assert not any(gradient.any() for gradient in gradients.values())


def test_values_depend_on_names_only() -> None:
    """A grouping or another layer's experts do not change what a part starts from."""
    dense, sparse = make_decoder(decoder_config()), make_decoder(SPARSE, partition=[[0], [1, 2]])
    ours, theirs = dict(dense.named_parameters()), dict(sparse.named_parameters())
    shared = ours.keys() & theirs.keys()
    assert {"decoder.embeddings.weight", "decoder.layers.1.attention.k.weight"} <= shared
    assert all(torch.equal(ours[name], theirs[name]) for name in shared)
    assert not torch.equal(theirs["decoder.layers.0.feed_forward.pools.g0.w_in"],
                           theirs["decoder.layers.0.feed_forward.pools.g1.w_in"])  # fmt: skip


def test_parameters_have_their_roles() -> None:
    model = make_decoder(decoder_config(SPARSE.moe, decoder=DecoderConfig(head="shared", qk_norm=True)))
    roles = parameter_roles(model)
    assert roles["heads.weight_VD"].kind == "head"
    assert roles["decoder.layers.1.feed_forward.gate.weight_ED"].kind == "gate"
    assert roles["decoder.layers.1.feed_forward.pools.g0.w_in"].routed_index == 1
    assert {name for name, role in roles.items() if not role.decay} == {name for name in roles if "norm" in name}
    assert roles["decoder.embeddings.weight"].decay


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (decoder_config(moe_config("sequence")), r"gate reads the mean over all tokens[\s\S]*kind=sequence"),
        (decoder_config(moe_config(unit="block", experts_per_task_group=1)), "whole layers[\\s\\S]*unit=block"),
        (decoder_config(conditional=ConditionalConfig()), "task-conditioned modules belong to encoders"),
        (decoder_config(decoder=DecoderConfig(num_kv_heads=3)), "num_heads 4, num_kv_heads 3"),
        (decoder_config(decoder=DecoderConfig(head_size=5)), r"pairs of coordinates[\s\S]*head_size 5"),
        (decoder_config(num_heads=3), r"model.hidden_size=16, model.num_heads=3[\s\S]*head_size"),
    ],
)
def test_what_a_decoder_cannot_be_is_refused(config, message) -> None:
    with pytest.raises(ConfigError, match=message):
        make_decoder(config)


def test_tasks_belong_to_one_family() -> None:
    with pytest.raises(ConfigError, match=r"answers are tokens[\s\S]*mood, topic, score"):
        make_decoder(decoder_config(), tasks=LABEL_TASKS)
    with pytest.raises(ConfigError, match=r"cannot answer in tokens[\s\S]*sum, poem, story"):
        make_model(model_config(), tasks=TASKS)
