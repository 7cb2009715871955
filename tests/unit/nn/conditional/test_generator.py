"""Task embeddings, generators, and where their first values come from."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distmoe.nn.conditional import TaskConditioner, conditional_parameters, reset_conditional
from distmoe.nn.conditional.generator import GeneratorFactory, LinearGenerator, TableGenerator
from tests.unit.nn.conditional.samples import EVERYTHING, MASK_B11S, REPO, TASK_IDS_B, SmallEncoder, states


def test_linear_generators_are_affine_in_the_embedding_of_the_row() -> None:
    generator, tasks = LinearGenerator(3, 2), TaskConditioner(4, 3)
    with torch.no_grad():
        tasks.z_Tk.copy_(torch.arange(12.0).view(4, 3))
        generator.weight.copy_(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]))
        generator.bias.copy_(torch.tensor([0.5, 0.0]))
    conditioning = tasks(torch.tensor([1, 3]))
    # z_1 = (3, 4, 5), z_3 = (9, 10, 11)
    assert generator(conditioning.task_ids_B, conditioning.z_Tk).tolist() == [[3.5, 9.0], [9.5, 21.0]]


def test_table_generators_give_the_row_of_the_task_and_need_no_embedding() -> None:
    generator, tasks = TableGenerator(4, 2), TaskConditioner(4, None)
    assert not list(tasks.parameters())
    with torch.no_grad():
        generator.table_Tm.copy_(torch.arange(8.0).view(4, 2))
    conditioning = tasks(torch.tensor([1, 3]))
    assert conditioning.z_Tk is None
    assert generator(conditioning.task_ids_B, None).tolist() == [[2.0, 3.0], [6.0, 7.0]]


@pytest.mark.parametrize(("kind", "expected"), [("linear", LinearGenerator), ("table", TableGenerator)])
def test_generators_start_at_zero(kind: str, expected: type[nn.Module]) -> None:
    generator = GeneratorFactory(kind, 4, 3)(6)  # type: ignore[arg-type]
    reset_conditional(generator, 0, "g", 0.02)
    assert isinstance(generator, expected)
    assert all(parameter.abs().max() == 0 for parameter in generator.parameters())


def test_embeddings_have_length_one_in_expectation_and_never_start_at_zero() -> None:
    tasks = TaskConditioner(400, 64)
    reset_conditional(tasks, 0, "t", 0.02)
    assert tasks.z_Tk.square().sum(1).mean().item() == pytest.approx(1, rel=0.05)


def test_a_further_task_leaves_the_first_values_of_the_others() -> None:
    few, more = TaskConditioner(3, 5), TaskConditioner(4, 5)
    for tasks in (few, more):
        reset_conditional(tasks, 0, "t", 0.02)
    assert torch.equal(few.z_Tk, more.z_Tk[:3])


def test_published_first_values_have_the_published_spread() -> None:
    """Measured on the published code (base): z 0.020, projected z 0.011, generated 0.011 from z and 0.006 from it."""
    width = 768
    tasks = TaskConditioner(9, width, published=True)
    generator = GeneratorFactory("linear", 9, width, zero=False)(1536)
    reset_conditional(tasks, 0, "t", 0.02)
    reset_conditional(generator, 0, "g", 0.02)
    conditioning = tasks(torch.arange(9))
    spreads = [
        conditioning.input_z_Tk.std().item(),
        conditioning.z_Tk.std().item(),
        generator(conditioning.task_ids_B, conditioning.input_z_Tk).std().item(),
        generator(conditioning.task_ids_B, conditioning.z_Tk).std().item(),
    ]
    assert spreads == pytest.approx([0.020, 0.011, 0.011, 0.006], rel=0.1)


@pytest.mark.parametrize(
    "values", [EVERYTHING, EVERYTHING | {"generator": "table"}, REPO, REPO | {"repo_layout": "large"}]
)
def test_first_values_depend_on_seed_and_names_only(values: dict) -> None:
    def draw(seed: int) -> dict[str, torch.Tensor]:
        torch.rand(3)  # other users of the global stream must not matter
        encoder = SmallEncoder(values, seed=seed)
        return {name: p for name, p in encoder.named_parameters() if name in conditional_parameters(encoder)}

    first, again, other = draw(0), draw(0), draw(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    random = {name for name in first if first[name].std() > 0}
    assert all(not torch.equal(first[name], other[name]) for name in random)
    if "generator" not in values:
        assert random
    same = [(a, b) for a in random for b in random if a < b and first[a].shape == first[b].shape]
    assert not [pair for pair in same if torch.equal(first[pair[0]], first[pair[1]])]


@pytest.mark.parametrize(
    "values", [EVERYTHING, EVERYTHING | {"generator": "table"}, REPO, REPO | {"repo_layout": "large"}]
)
def test_conditional_parameters_are_exactly_those_that_the_plain_encoder_lacks(values: dict) -> None:
    encoder = SmallEncoder(values)
    plain = dict(SmallEncoder().named_parameters())
    assert conditional_parameters(encoder).keys() == dict(encoder.named_parameters()).keys() - plain.keys()


def test_only_the_matrices_of_bottlenecks_decay() -> None:
    decayed = {name for name, decay in conditional_parameters(SmallEncoder(EVERYTHING)).items() if decay}
    assert decayed == {f"layers.{i}.bottleneck.{w}" for i in range(2) for w in ("w_down", "w_up")}
    decayed = {name for name, decay in conditional_parameters(SmallEncoder(REPO)).items() if decay}
    block = "layers.1.bottleneck.block"
    assert decayed == {f"{block}.{part}.weight" for part in ("projection", "down", "up")}


@pytest.mark.parametrize(
    "values", [EVERYTHING, EVERYTHING | {"generator": "table"}, REPO, REPO | {"repo_layout": "large"}]
)
def test_every_parameter_is_used_in_the_forward_of_its_own_module_only(values: dict) -> None:
    """ZeRO-3 gathers a module's own parameters for its forward only: outside of it they are empty."""
    encoder = SmallEncoder(values).eval()
    owners = {id(parameter): module for module in encoder.modules() for parameter in module.parameters(recurse=False)}
    opened: list[nn.Module] = []
    used: set[int] = set()
    astray: list[nn.Module] = []
    for module in encoder.modules():
        module.register_forward_pre_hook(lambda module, _: opened.append(module))
        module.register_forward_hook(lambda *_: opened.pop() and None)

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            for value in (*args, *(kwargs or {}).values()):
                if id(value) in owners:
                    used.add(id(value))
                    if opened[-1] is not owners[id(value)]:
                        astray.append(owners[id(value)])
            return function(*args, **(kwargs or {}))

    with Watch():
        encoder(states(), TASK_IDS_B, MASK_B11S)
    assert not astray
    assert used == owners.keys()


def test_no_name_contains_the_word_by_which_the_engine_finds_experts() -> None:
    for values in (EVERYTHING, REPO, REPO | {"repo_layout": "large"}):
        assert not [name for name in SmallEncoder(values).state_dict() if "expert" in name]
