import torch

from distmoe.nn.init import init_normal_


def test_values_depend_on_seed_name_and_index_only() -> None:
    def draw(seed: int = 1, name: str = "a.w", index: int | None = None) -> torch.Tensor:
        torch.rand(3)  # other users of the global stream must not matter
        return init_normal_(torch.empty(4, 5), seed=seed, name=name, std=0.02, index=index)

    assert torch.equal(draw(), draw())
    for other in (draw(seed=2), draw(name="a.b"), draw(index=0), draw(index=1)):
        assert not torch.equal(draw(), other)
    assert not torch.equal(draw(index=0), draw(index=1))


def test_half_precision_gets_the_same_numbers_rounded() -> None:
    full = init_normal_(torch.empty(100), seed=1, name="w", std=0.02)
    half = init_normal_(torch.empty(100, dtype=torch.bfloat16), seed=1, name="w", std=0.02)
    assert torch.equal(half, full.bfloat16())


def test_standard_deviation_is_the_one_asked_for() -> None:
    values = init_normal_(torch.empty(100, 100), seed=1, name="w", std=0.02)
    assert abs(values.std().item() - 0.02) < 0.001
    assert abs(values.mean().item()) < 0.001
