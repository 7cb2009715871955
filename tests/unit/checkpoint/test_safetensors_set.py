from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from distmoe.checkpoint.safetensors_set import write_set
from distmoe.errors import CheckpointError
from tests.unit.checkpoint.runs import parts_of, trained, write_run
from tests.unit.checkpoint.tools import main_of
from tests.unit.models.samples import model_config, moe_config

CONFIG = model_config(moe_config("fixed"))  # its table is a buffer of integers


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", CONFIG, trained(CONFIG))


def _read(folder: Path, stem: str) -> dict[str, Tensor]:
    """Follows the index, as any reader of such sets does."""
    weight_map = json.loads((folder / f"{stem}.safetensors.index.json").read_text())["weight_map"]
    files = {file: load_file(folder / file) for file in set(weight_map.values())}
    assert sum(map(len, files.values())) == len(weight_map)
    return {name: files[file][name] for name, file in weight_map.items()}


def test_a_set_holds_weights_buffers_and_moments_bit_for_bit(checkpoint: Path, tmp_path: Path) -> None:
    done = write_set(checkpoint, tmp_path / "out", moments=True, file_bytes=20_000)
    assert sum(name.startswith("model-") for name in done.files) > 1
    expected = parts_of(trained(CONFIG))
    for stem, prefixes in (
        ("model", ("fp32/", "buffer/")),
        ("exp_avg", ("exp_avg/",)),
        ("exp_avg_sq", ("exp_avg_sq/",)),
    ):
        wanted = {key.partition("/")[2]: value for key, value in expected.items() if key.startswith(prefixes)}
        found = _read(done.folder, stem)
        assert found.keys() == wanted.keys()
        assert all(
            torch.equal(found[name], wanted[name]) and found[name].dtype == wanted[name].dtype for name in wanted
        )
    assert json.loads((done.folder / "checkpoint.json").read_text())["step"] == 7


def test_the_command_casts_weights_and_leaves_buffers(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_of("reshard")([str(checkpoint), str(tmp_path / "out"), "--dtype", "bfloat16"]) == 0
    assert "model-00001-of-00001.safetensors" in capsys.readouterr().out
    (tmp_path / "new").touch()
    assert len({path.stat().st_mode for path in (tmp_path / "new", *(tmp_path / "out").iterdir())}) == 1
    found = _read(tmp_path / "out", "model")
    assert found["heads.weight"].dtype == torch.bfloat16
    assert found["encoder.layers.1.feed_forward.gate.table_MK"].dtype == torch.int64


def test_a_damaged_checkpoint_and_a_full_folder_are_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        write_set(checkpoint, checkpoint)
    path = checkpoint / "shards" / "__0_0.distcp"
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    assert main_of("reshard")([str(checkpoint), str(tmp_path / "out")]) == 2
    assert "__0_0.distcp has another SHA-256" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
