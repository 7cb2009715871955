"""Sequence parallelism beside its parity cases: random numbers, recomputation and the memory that it saves.

``-m slow -s`` prints the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from distmoe.data.batch import TaskBatch
from distmoe.models.decoder_config import DecoderConfig
from distmoe.models.decoder_shape import decoder_shape
from distmoe.models.shape import resolve_shape
from distmoe.models.tensor_parallel import cut_over_tensor_ranks
from tests.distributed.harness import run_ranks
from tests.unit.models.decoder_samples import decoder_config, make_decoder, token_batch
from tests.unit.models.samples import gate_config, loss_of, make_batch, make_model, model_config, moe_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

NOISY = moe_config(gate_config("token", noise="normal"), layers=[1], shared_expert=True)
DROPOUT = {"dropout": 0.3, "attention_dropout": 0.0}


def token_loss(model: nn.Module, batch: TaskBatch) -> Tensor:
    return model(batch).logits_LV.square().mean()


def gradients(model: nn.Module, batch: TaskBatch, loss: Callable[[nn.Module, TaskBatch], Tensor]) -> dict[str, Tensor]:
    """Of one training pass, with the random numbers of seed 0."""
    cut_over_tensor_ranks(model, dist.group.WORLD, sequence=True)  # type: ignore[arg-type]
    torch.manual_seed(0)
    loss(model.train(), batch).backward()  # type: ignore[no-untyped-call]
    return {name: parameter.grad for name, parameter in model.named_parameters()}  # type: ignore[misc]


def with_dropout(rank: int) -> list[dict[str, Tensor]]:
    found = []
    for again in (False, True):
        options = DROPOUT | {"activation_checkpointing": again}
        head = DecoderConfig(num_kv_heads=2, head="shared")
        found.append(gradients(make_decoder(decoder_config(NOISY, decoder=head, **options)), token_batch(), token_loss))
        found.append(gradients(make_model(model_config(NOISY, **options)), make_batch(), loss_of))
    return found


def test_with_dropout_what_is_whole_stays_equal_and_recomputation_repeats_the_masks() -> None:
    first, second = run_ranks(with_dropout, 2)
    for decoder in (0, 1):
        plain, again = first[decoder], first[decoder + 2]
        assert all(torch.equal(plain[name], again[name]) for name in plain)
    for own, other in zip(first, second, strict=True):
        # Slices have equal shapes and other values; everything else, experts and noisy gates included, is equal.
        cut = {name for name in own if not torch.equal(own[name], other[name])}
        assert {name.split(".")[-2] for name in cut} <= {
            "embeddings", "word", "q", "k", "v", "qkv", "out", "feed_forward", "shared_mlp", "heads"
        }  # fmt: skip
        assert not any(name.endswith(("b_out", "out.bias")) for name in cut)


def masks(rank: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    model = make_decoder(decoder_config(**DROPOUT))
    cut_over_tensor_ranks(model, dist.group.WORLD, sequence=True)  # type: ignore[arg-type]
    dropout = model.train().decoder.dropout
    torch.manual_seed(0)
    first, second = dropout(torch.ones(20, 50)), dropout(torch.ones(20, 50))
    return first, second, torch.rand(3), model.eval().decoder.dropout(torch.ones(2))


def test_slices_are_dropped_by_numbers_of_their_own_and_nothing_else_notices() -> None:
    own, other = run_ranks(masks, 2)
    drawn = [own[0], own[1], other[0], other[1]]
    assert all((mask == 0).float().mean().item() == pytest.approx(0.3, abs=0.05) for mask in drawn)
    assert all(mask.unique().tolist() == pytest.approx([0, 1 / 0.7]) for mask in drawn)
    # Independent masks agree at 0.3^2 + 0.7^2 of the numbers.
    pairs = [(a, b) for index, a in enumerate(drawn) for b in drawn[:index]]
    assert all((a == b).float().mean().item() == pytest.approx(0.58, abs=0.06) for a, b in pairs)
    assert torch.equal(own[2], other[2])
    assert torch.equal(own[3], torch.ones(2))


@contextmanager
def keeping(model: nn.Module) -> Iterator[Callable[[], int]]:
    """Counts the bytes that a forward pass keeps for backward, each storage once, without parameters."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}
    alive = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(storage)  # an address is not given away twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield lambda: sum(kept.values())


SIZES = {"hidden_size": 256, "num_layers": 4, "num_heads": 8, "intermediate_size": 1024, "max_positions": 128}
LENGTHS = {"lengths": [128] * 4}


def memory(rank: int, routed: bool) -> dict[str, list[int]]:
    """Per family, with tensor parallelism alone and with sequence parallelism."""
    moe = moe_config("token", num_experts=4, top_k=1) if routed else None
    found: dict[str, list[int]] = {"decoder": [], "encoder": []}
    for sequence in (False, True):
        causal = decoder_config(moe, **SIZES, dropout=0.1, decoder=DecoderConfig(num_kv_heads=4))
        config = model_config(moe, **SIZES, dropout=0.1)
        decoder = make_decoder(causal, shape=decoder_shape(causal, 64, 0))
        encoder = make_model(config, shape=resolve_shape(config, 64, 0))  # type: ignore[arg-type]
        for name, model, batch in (
            ("decoder", decoder, token_batch(**LENGTHS, prompts=[127] * 4)),
            ("encoder", encoder, make_batch(**LENGTHS)),
        ):
            cut_over_tensor_ranks(model, dist.group.WORLD, sequence=sequence)  # type: ignore[arg-type]
            with keeping(model.train()) as kept:
                model(batch)
            found[name].append(kept())
    return found


@pytest.mark.parametrize("routed", [False, True])
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_fewer_activations_are_kept(num_ranks: int, routed: bool) -> None:
    for family, (whole, sliced) in run_ranks(memory, num_ranks, routed)[0].items():
        print(f"{family}, {num_ranks} tensor ranks, {routed=}: {whole} bytes, {sliced} in slices: {sliced / whole:.2f}")
        assert sliced < whole
