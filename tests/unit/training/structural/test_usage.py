"""Tasks of a shared model compared by their own examples: two tasks on words of one set, one on words of another."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import yaml

from distmoe.errors import CheckpointError, ConfigError, DataError
from distmoe.tokenization import build_word_tokenizer
from distmoe.training.report.offline import draw
from distmoe.training.structural.offline import examine
from tests.unit.checkpoint.samples import save_hf

WORDS = {"cats": ["tom", "lap", "fur", "purr"], "dogs": ["tom", "lap", "fur", "purr"], "code": ["for", "if", "def"]}


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A random BERT of two layers, and three task folders below ``data``."""
    monkeypatch.chdir(tmp_path)
    save_hf(tmp_path / "hf")
    build_word_tokenizer(sorted({word for words in WORDS.values() for word in words})).save_pretrained(tmp_path / "hf")
    dice = random.Random(0)
    for name, words in WORDS.items():
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        spec = {"type": "classification", "labels": ["no", "yes"], "metric": "accuracy"}
        (folder / "task.json").write_text(json.dumps(spec))
        rows = [{"text": " ".join(dice.choices(words, k=8)), "label": dice.randint(0, 1)} for _ in range(60)]
        for split, kept in (("train", rows), ("validation", rows[:4])):
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    return tmp_path


def run(source: Path, names: list[str] | None = None, *, num_examples: int = 100, data: str | None = "data"):
    return examine(
        source / "hf",
        names=names,
        threshold=0.8,
        num_examples=num_examples,
        data=None if data is None else source / data,
    )


def test_tasks_with_alike_texts_are_joined_in_every_layer_of_a_hugging_face_folder(source: Path) -> None:
    finding = run(source)
    names = finding.tasks.names
    cats, dogs, code = (names.index(name) for name in ("cats", "dogs", "code"))
    for layer in finding.layers:
        assert layer.similarity is not None
        values = layer.similarity.values()
        assert values[cats, dogs] > 0.8 > max(values[cats, code], values[dogs, code])
        assert sorted(map(sorted, layer.partition)) == sorted([sorted((cats, dogs)), [code]])
    recipe = yaml.safe_load(finding.recipe())
    assert recipe["model"]["moe"] == {"layers": [0, 1], "experts_per_task_group": 1}
    expected = [["cats", "dogs"], ["code"]]
    assert [sorted(map(sorted, layer)) for layer in recipe["structure"]["grouping"]] == [expected] * 2
    drawn = {path.name for path in draw(finding, source / "pictures", threshold=0.8)}
    assert {"similarity.png", "dendrogram.png", "tree.png"} <= drawn


def test_only_the_named_tasks_are_compared(source: Path) -> None:
    assert run(source, ["cats", "code"]).tasks.names == ("cats", "code")


def test_what_cannot_be_compared_is_refused(source: Path) -> None:
    with pytest.raises(ConfigError, match="does not say which tasks"):
        run(source, data=None)
    with pytest.raises(ConfigError, match="these tasks cannot be compared"):
        run(source, ["cats"])
    with pytest.raises(DataError, match="a task has too few examples to be compared"):
        run(source, num_examples=6)
    with pytest.raises(ConfigError, match="threshold is outside"):
        examine(source / "hf", names=None, threshold=1.5, num_examples=60, data=source / "data")
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        examine(source / "data", names=None, threshold=0.8, num_examples=60)
