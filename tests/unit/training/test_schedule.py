import pytest

from distmoe.engine.config import ScheduleConfig
from distmoe.training.schedule import lr_factor


def factors(**values: object) -> list[float]:
    config = ScheduleConfig(num_steps=10, **values)
    return [lr_factor(step, config) for step in range(10)]


def test_warm_up_rises_from_one_share_to_one_and_linear_decay_would_reach_zero_after_the_last_step() -> None:
    # 2 warm-up steps, then 8 steps down: 8/8, 7/8, ... 1/8.
    assert factors(warmup=0.2, kind="linear") == pytest.approx(
        [0.5, 1.0, 1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    )


def test_constant_stays_at_the_peak() -> None:
    assert factors(warmup=0.0, kind="constant") == [1.0] * 10


def test_cosine_is_half_way_in_the_middle() -> None:
    config = ScheduleConfig(num_steps=10, warmup=0.2, kind="cosine")
    assert lr_factor(6, config) == pytest.approx(0.5)
    assert lr_factor(10, config) == pytest.approx(0.0)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_decay_ends_at_the_final_scale_and_stays_there(kind: str) -> None:
    config = ScheduleConfig(num_steps=10, warmup=0.0, kind=kind, final_scale=0.25)
    assert lr_factor(10, config) == pytest.approx(0.25)
    assert lr_factor(99, config) == pytest.approx(0.25)


def test_no_step_has_factor_zero() -> None:
    assert min(factors(warmup=0.5, kind="linear")) > 0
