from collections import Counter

import numpy as np
import pytest

from distmoe.config import build
from distmoe.data.config import DataConfig, SuiteConfig, TasksConfig
from distmoe.data.sources import SuiteSource, load_tasks
from distmoe.data.sources.planted import num_attributes
from distmoe.errors import ConfigError, DataError

SMALL = SuiteConfig(train_examples=40, low_resource_examples=8, eval_examples=10)


def test_the_default_suite_has_three_families_of_three_and_every_kind():
    tasks, source = load_tasks(TasksConfig(), DataConfig())
    assert Counter(spec.family for spec in tasks) == {"planted0": 3, "planted1": 3, "planted2": 3}
    assert {spec.kind for spec in tasks} == {"classification", "pair_classification", "regression"}
    assert {spec.num_outputs for spec in tasks} == {1, 2, 3}
    assert source.splits("planted0_a") == ("train", "validation", "test")


def test_a_suite_whose_borders_would_take_too_many_texts_to_find_is_refused():
    assert num_attributes(18) == 20
    with pytest.raises(ConfigError, match=r"num_task_groups[\s\S]*19"):
        build(SuiteConfig, {"num_task_groups": 19})


def test_sizes_follow_the_configuration_and_the_last_task_of_a_family_is_low_resource():
    source = SuiteSource(SMALL)
    sizes = {name: len(source.examples(name, "train")) for name in source.names}
    assert [sizes[f"planted0_{suffix}"] for suffix in ("a", "b", "low")] == [40, 40, 8]
    assert len(source.examples("planted0_low", "test")) == 10


def test_equal_configurations_generate_equal_texts_and_another_seed_does_not():
    once, again = SuiteSource(SMALL), SuiteSource(SMALL)
    other = SuiteSource(SMALL.model_copy(update={"generator_seed": 1}))
    for name in once.names:
        assert once.examples(name, "train") == again.examples(name, "train")
    assert once.examples("planted0_a", "train") != other.examples("planted0_a", "train")
    assert once.fingerprint("planted0_a", "train") == again.fingerprint("planted0_a", "train")
    assert once.fingerprint("planted0_a", "train") != other.fingerprint("planted0_a", "train")


def test_generated_texts_are_pinned():
    """The suite is a reference: a change of any text or label must raise SUITE_VERSION."""
    example = SuiteSource(SuiteConfig()).examples("planted0_a", "train")[0]
    assert (example.text, example.label) == (
        "foklu fobre pobre dadu febro tifli susi sipe gavu klata kolu misto dadu novo nifle debo",
        2,
    )


def test_splits_and_tasks_do_not_repeat_each_other():
    source = SuiteSource(SuiteConfig(train_examples=300, eval_examples=300))
    train = {example.text for example in source.examples("planted0_a", "train")}
    assert not train & {example.text for example in source.examples("planted0_a", "test")}
    assert not train & {example.text for example in source.examples("planted0_b", "train")}


def test_texts_are_16_known_words_and_pairs_share_them():
    source = SuiteSource(SMALL)
    known = set(source.vocabulary)
    for name in source.names:
        for example in source.examples(name, "train"):
            words = f"{example.text} {example.text_pair or ''}".split()
            assert len(words) == 16
            assert set(words) <= known
            assert (example.text_pair is not None) == source.spec(name).pair


def test_families_disagree_on_the_same_texts():
    """The conflict that grouping removes: the scores of two families are nearly uncorrelated over all texts."""
    source = SuiteSource(SMALL)
    every = np.array(np.meshgrid(*[[-1, 1]] * 6)).reshape(6, -1).T.astype(np.int8)
    nonlinear = {}
    for name in source.names:
        score = source._tasks[name].function.score(every)
        linear = every @ np.linalg.lstsq(every.astype(float), score, rcond=None)[0]
        nonlinear[name] = score - linear
    for a in source.names:
        for b in source.names:
            if source.spec(a).family != source.spec(b).family:
                assert abs(nonlinear[a] @ nonlinear[b]) < 1e-9


def test_tasks_of_a_family_agree_on_the_signs_of_their_features_if_they_are_asked_to():
    """Names, texts and strengths stay; between families features are others, so signs mean nothing."""
    agreeing, free = SuiteSource(SMALL.model_copy(update={"signs": "family"})), SuiteSource(SMALL)
    own = []
    for family in range(3):
        functions = [agreeing._tasks[f"planted{family}_{suffix}"].function for suffix in ("a", "b", "low")]
        assert len({tuple(np.sign(function.weights)) for function in functions}) == 1
        assert len({function.weights for function in functions}) == 3
        own.append({tuple(np.sign(free._tasks[f"planted{family}_{suffix}"].function.weights)) for suffix in "ab"})
    assert any(len(signs) > 1 for signs in own)
    for name in free.names:
        strengths = [np.abs(source._tasks[name].function.weights) for source in (agreeing, free)]
        assert np.array_equal(*strengths)
        texts = [[one.text for one in source.examples(name, "train")] for source in (agreeing, free)]
        assert texts[0] == texts[1]


def test_unrelated_tasks_use_the_same_words_with_a_private_dictionary():
    source = SuiteSource(SuiteConfig(num_unrelated=2, train_examples=20))
    assert source.names[-2:] == ("unrelated0", "unrelated1")
    assert source.spec("unrelated0").family != source.spec("unrelated1").family
    words = {word for example in source.examples("unrelated0", "train") for word in example.text.split()}
    assert words <= set(source.vocabulary)
    assert source._tasks["unrelated0"].lexicon != source._tasks["unrelated1"].lexicon


def test_unrelated_tasks_leave_the_others_as_they_were():
    alone, crowded = SuiteSource(SMALL), SuiteSource(SMALL.model_copy(update={"num_unrelated": 3}))
    assert alone.examples("planted1_b", "train") == crowded.examples("planted1_b", "train")


@pytest.mark.parametrize(("groups", "per_group", "unrelated"), [(1, 1, 0), (7, 2, 1), (2, 30, 0)])
def test_any_number_of_tasks_can_be_planted(groups, per_group, unrelated):
    config = SMALL.model_copy(
        update={"num_task_groups": groups, "tasks_per_group": per_group, "num_unrelated": unrelated}
    )
    source = SuiteSource(config)
    assert len(set(source.names)) == groups * per_group + unrelated
    assert all(source.examples(name, "validation") for name in source.names)


def test_an_unknown_name_lists_what_exists():
    with pytest.raises(
        DataError, match=r"no such task in the embedded suite[\s\S]*sst2[\s\S]*planted0_a \| planted0_b"
    ):
        load_tasks(TasksConfig(names=["sst2"]), DataConfig())
