from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from packaging.requirements import Requirement

from distmoe.engine import compatibility
from distmoe.errors import ConfigError


def test_the_installed_deepspeed_has_every_private_name() -> None:
    assert compatibility.missing_names() == []
    compatibility.check_version()


def test_the_pin_is_the_one_of_the_project() -> None:
    requirements = importlib.metadata.requires("distmoe") if _installed() else _from_pyproject()
    pinned = Requirement(compatibility.PIN)
    found = [parsed for line in requirements or [] if (parsed := Requirement(line.split("#")[0])).name == pinned.name]
    assert [parsed.specifier for parsed in found] == [pinned.specifier]


@pytest.mark.parametrize("version", ["0.19.7", "0.20.0", "1.0"])
def test_another_version_is_refused_with_the_pin(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    with pytest.raises(ConfigError, match=rf"got:      {version}(.|\n)*pip install 'deepspeed>=0.19.8,<0.20'"):
        compatibility.check_version()


def test_a_missing_private_name_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(compatibility.PRIVATE_NAMES, "deepspeed.utils.groups", ("_GONE",))
    with pytest.raises(ConfigError, match=r"deepspeed\.utils\.groups\._GONE"):
        compatibility.check_version()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_an_engine_without_a_name_that_objects_get_when_made_is_refused(stage: int) -> None:
    kind = {0: "none", 3: "stage3"}.get(stage, "zero")
    optimizer, parameters = compatibility.OPTIMIZER_NAMES[kind], compatibility.PARAMETER_NAMES[kind]

    def engine(*, without: str = "") -> SimpleNamespace:
        def made(names: Sequence[str]) -> SimpleNamespace:
            return SimpleNamespace(**{name: None for name in names if name != without})

        parameter = SimpleNamespace(requires_grad=True, **vars(made(parameters)))
        module = SimpleNamespace(parameters=lambda: [parameter, SimpleNamespace(requires_grad=False)])
        return SimpleNamespace(optimizer=made(optimizer), module=module, **vars(made(compatibility.ENGINE_NAMES)))

    compatibility.check_engine(engine(), stage=stage)
    for name in (*compatibility.ENGINE_NAMES, *optimizer, *parameters):
        with pytest.raises(ConfigError, match=rf"lacks private names(.|\n)*\.{name}'"):
            compatibility.check_engine(engine(without=name), stage=stage)


def test_the_marker_has_no_tensors_and_passes_deepspeeds_check() -> None:
    from deepspeed.module_inject.auto_ep_layer import AutoEPMoELayer

    marker = compatibility.routed_marker(8, 2)
    assert isinstance(marker, AutoEPMoELayer)
    assert not list(marker.parameters())
    assert not list(marker.buffers())
    assert not marker.state_dict()
    marker.set_deepspeed_parallelism(False, folding_group_handles=None)


def test_a_constant_loss_scale_is_not_saved_and_never_set_over_a_dynamic_one() -> None:
    """DeepSpeed gives fp32 and bf16 a constant scale of 1, which checkpoints of fp32 held."""

    def optimizer(*, dynamic: bool) -> SimpleNamespace:
        scaler = DynamicLossScaler(2.0**16, 1000, 1, 2, False) if dynamic else LossScaler(1.0)
        return SimpleNamespace(loss_scaler=scaler, dynamic_loss_scale=dynamic)

    assert compatibility.loss_scaler_state(optimizer(dynamic=False)) == {}
    fp16 = optimizer(dynamic=True)
    saved = compatibility.loss_scaler_state(fp16)
    assert (saved["cur_scale"], saved["cur_iter"]) == (2.0**16, 0)
    for constant in ({}, {"cur_scale": 1.0}):
        compatibility.set_loss_scaler_state(fp16, constant)
        assert compatibility.loss_scaler_state(fp16) == saved
    compatibility.set_loss_scaler_state(fp16, saved | {"cur_scale": 4.0, "cur_iter": 7})
    assert (fp16.loss_scaler.cur_scale, fp16.loss_scaler.cur_iter) == (4.0, 7)
    constant_scale = optimizer(dynamic=False)
    compatibility.set_loss_scaler_state(constant_scale, saved)
    assert constant_scale.loss_scaler.cur_scale == 1.0


def _installed() -> bool:
    try:
        return bool(importlib.metadata.version("distmoe"))
    except importlib.metadata.PackageNotFoundError:
        return False


def _from_pyproject() -> list[str]:
    import tomllib
    from pathlib import Path

    return tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]["dependencies"]
