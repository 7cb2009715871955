"""What a shift does to texts, and that nothing but seed, task, example and shift decides it."""

from __future__ import annotations

import pytest

from distmoe.config import build
from distmoe.data.config import DataConfig, SuiteConfig
from distmoe.data.example import TaskExample
from distmoe.data.shift import Shift, shift_examples
from distmoe.data.sources.suite import SuiteSource
from distmoe.errors import ConfigError

TEXTS = [TaskExample(" ".join(f"w{index}_{place}" for place in range(20)), None, index) for index in range(60)]


def shifted(kind, strength, examples=TEXTS, **changes):
    return shift_examples(examples, Shift(kind, strength), **{"seed": 0, "task": "t", **changes})


def words(example):
    return example.text.split()


def is_subsequence(short, long):
    left = iter(long)
    return all(word in left for word in short)


def test_noise_replaces_its_share_of_the_words_by_words_of_the_texts_and_keeps_labels():
    """All words differ: of 1200, about 240 are replaced, standard deviation 14; 1 draw in 1200 is the word itself."""
    found = shifted("noise", 0.2)
    assert [one.label for one in found] == [one.label for one in TEXTS]
    pairs = [(a, b) for old, new in zip(TEXTS, found, strict=True) for a, b in zip(words(old), words(new), strict=True)]
    assert 185 < sum(a != b for a, b in pairs) < 295
    assert {b for _, b in pairs} <= {a for a, _ in pairs}
    assert [words(one) for one in shifted("noise", 1.0)] != [words(one) for one in TEXTS]


def test_dropping_leaves_out_its_share_of_the_words_and_never_all_of_them():
    found = shifted("drop", 0.2)
    assert all(is_subsequence(words(new), words(old)) for old, new in zip(TEXTS, found, strict=True))
    assert 905 < sum(len(words(one)) for one in found) < 1015
    assert {len(words(one)) for one in shifted("drop", 0.999)} == {1}


def test_longer_texts_have_filler_words_between_the_old_ones():
    found = shifted("longer", 1.5, fillers=("er", "um"))
    for old, new in zip(TEXTS, found, strict=True):
        assert len(words(new)) == 30
        assert [word for word in words(new) if word not in ("er", "um")] == words(old)
    assert len({tuple(word in ("er", "um") for word in words(one)) for one in found}) > 50


def test_where_a_source_knows_no_filler_words_they_are_the_commonest_half():
    """Of eight words "the" is three and "a" one more that reaches the half; ties go by the alphabet."""
    examples = [TaskExample("the cat the dog", None, 0), TaskExample("the a bird fish", None, 0)]
    added = {
        word for seed in range(40) for one in shifted("longer", 3.0, examples, seed=seed) for word in words(one)[:1]
    }
    found = shifted("longer", 50.0, examples)
    assert added <= {"the", "a", "cat"}
    assert set(words(found[0])) == {"the", "a", "cat", "dog"}
    assert set(words(found[1])) == {"the", "a", "bird", "fish"}


def test_both_texts_of_a_pair_are_shifted_and_an_answer_is_not():
    pair = [TaskExample("a b c d", "e f g h", 1, target="i j", references=("i j",))]
    (found,) = shifted("longer", 2.0, pair, fillers=("er",))
    assert (found.text.split().count("er"), found.text_pair.split().count("er")) == (4, 4)
    assert (found.target, found.references) == ("i j", ("i j",))
    assert shifted("drop", 0.5, [TaskExample("", "a", 0)])[0].text == ""


def test_an_example_has_a_stream_of_its_own():
    """Another first example changes nothing for the others; seed, task, kind and strength do."""
    found = shifted("drop", 0.5)
    assert found == shifted("drop", 0.5)
    other = [TaskExample("much shorter", None, 0), *TEXTS[1:]]
    assert shifted("drop", 0.5, other)[1:] == found[1:]
    assert shifted("drop", 0.5, seed=1) != found
    assert shifted("drop", 0.5, task="u") != found
    kept = [[word[word.index("_") :] for word in words(one)] for one in found]
    assert len(set(map(tuple, kept))) > 55  # not one pattern for all


def test_the_suites_longer_texts_say_what_the_texts_say():
    source = SuiteSource(build(SuiteConfig, {"eval_examples": 20}))
    name = source.names[0]
    examples, fillers = source.examples(name, "test"), source.filler_words(name)
    for old, new in zip(examples, shifted("longer", 1.75, examples, fillers=fillers), strict=True):
        said = [word for word in words(old) if word not in fillers]
        assert [word for word in words(new) if word not in fillers] == said
        assert len(words(new)) == 28


def test_shifts_are_named_by_kind_and_strength():
    config = build(DataConfig, {"shifts": {"longer": [2], "noise": [0.1, 0.25]}})
    assert [shift.split for shift in config.shifts.all] == ["test~noise_0.1", "test~noise_0.25", "test~longer_2"]


@pytest.mark.parametrize(
    ("kind", "values"), [("noise", [0]), ("drop", [1.0]), ("longer", [1.0]), ("noise", [0.1, 0.1])]
)
def test_a_strength_that_is_none_is_refused(kind, values):
    with pytest.raises(ConfigError, match=rf"data.shifts.{kind}[\s\S]*got: +\[{values[0]}[\s\S]*different numbers"):
        build(DataConfig, {"shifts": {kind: values}})
