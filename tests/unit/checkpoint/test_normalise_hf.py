import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertForMaskedLM

from distmoe.checkpoint.import_hf import load_pretrained
from distmoe.checkpoint.normalise_hf import normalise
from distmoe.errors import CheckpointError
from distmoe.models.shape import resolve_shape
from tests.unit.checkpoint.samples import hf_model, minilm_folder, save_hf
from tests.unit.models.samples import make_model, model_config


def _with_tokenizer(folder: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copyfile(minilm_folder() / name, folder / name)
    return folder


def test_heads_go_and_every_tensor_of_the_encoder_stays_in_float32(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    BertForMaskedLM(hf_model("bert").config).half().save_pretrained(source)
    report = normalise(_with_tokenizer(source), out)
    assert report.num_loaded == 5 + 2 * 12
    assert report.fresh == ("pooler.dense.weight", "pooler.dense.bias")
    before, after = load_file(source / "model.safetensors"), load_file(out / "model.safetensors")
    assert {name for name in before if name.startswith("bert.")} == {f"bert.{name}" for name in after}
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}
    assert all(torch.equal(tensor, before[f"bert.{name}"].float()) for name, tensor in after.items())
    assert sorted(path.name for path in out.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    ]


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_result_is_a_pretrained_folder_for_distmoe_and_for_transformers(tmp_path: Path, kind: str) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    reference = save_hf(source, kind)
    normalise(_with_tokenizer(source), out)
    again = type(reference).from_pretrained(out)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in reference.state_dict().items())
    config = model_config(None, pretrained=str(out))
    model = make_model(config, shape=resolve_shape(config, 10, 0))
    assert load_pretrained(model, out, config=config, seed=0).ignored == ()


def test_a_source_without_tokenizer_and_a_full_target_are_refused(tmp_path: Path) -> None:
    save_hf(tmp_path / "in")
    with pytest.raises(CheckpointError, match=r"(?s)has no tokenizer.*none of its files"):
        normalise(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(CheckpointError, match=r"(?s)overwrite.*not empty"):
        normalise(tmp_path / "in", tmp_path / "in")


def test_an_incomplete_source_leaves_no_target(tmp_path: Path) -> None:
    save_hf(tmp_path / "in")
    _with_tokenizer(tmp_path / "in")
    values = json.loads((tmp_path / "in" / "config.json").read_text())
    (tmp_path / "in" / "config.json").write_text(json.dumps(values | {"num_hidden_layers": 3}))
    with pytest.raises(CheckpointError, match=r"missing: encoder.layer.2"):
        normalise(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_of_other_sizes_than_the_configuration_gives_leave_no_target(tmp_path: Path) -> None:
    save_hf(tmp_path / "in")
    _with_tokenizer(tmp_path / "in")
    values = json.loads((tmp_path / "in" / "config.json").read_text())
    smaller = values["hidden_size"] // 2
    (tmp_path / "in" / "config.json").write_text(json.dumps(values | {"hidden_size": smaller}))
    with pytest.raises(CheckpointError, match=rf"(?s)does not have the shape.*embeddings.*expected: +\[.*{smaller}\]"):
        normalise(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()
