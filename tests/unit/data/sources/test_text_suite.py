import math
from collections import Counter, defaultdict
from itertools import pairwise

import pytest

from distmoe.data.config import TextSuiteConfig
from distmoe.data.sources.text_suite import FOLLOWER_SHARES, TextSuiteSource, entropy
from distmoe.errors import DataError


def texts(source, name, split="train"):
    return [example.text for example in source.examples(name, split)]


def followers(source, name):
    found = defaultdict(Counter)
    for text in texts(source, name):
        words = text.split()
        for first, second in pairwise(words):
            found[first][second] += 1
    return found


@pytest.fixture(scope="module")
def corpora():
    return TextSuiteSource(TextSuiteConfig(train_examples=400))


def test_every_word_has_four_followers_with_the_planted_shares(corpora):
    found = followers(corpora, "prose0_a")
    assert {len(counts) for counts in found.values()} == {4}
    for rank, share in enumerate(FOLLOWER_SHARES):
        counts = [sorted(one.values(), reverse=True)[rank] / one.total() for one in found.values()]
        assert sum(counts) / len(counts) == pytest.approx(share, abs=0.02)


def test_families_contradict_each_other_and_their_corpora_agree(corpora):
    likeliest = {
        name: {word: max(counts, key=counts.get) for word, counts in followers(corpora, name).items()}
        for name in corpora.names
    }
    assert likeliest["prose0_a"] == likeliest["prose0_b"]
    same = sum(likeliest["prose0_a"][word] == likeliest["prose1_a"][word] for word in likeliest["prose0_a"])
    assert same < len(likeliest["prose0_a"]) / 4


def test_the_entropy_by_hand():
    """Shares 0.55, 0.25, 0.15, 0.05: a perplexity of about 3."""
    assert math.exp(entropy()) == pytest.approx(3.04, abs=0.01)


def test_texts_are_equal_for_equal_configuration_and_differ_between_splits(corpora):
    again = TextSuiteSource(TextSuiteConfig(train_examples=400))
    assert texts(again, "prose1_b") == texts(corpora, "prose1_b")
    assert again.fingerprint("prose1_b", "train") == corpora.fingerprint("prose1_b", "train")
    assert not set(texts(corpora, "prose1_b", "test")) & set(texts(corpora, "prose1_b"))


def test_pairs_follow_their_rules_and_every_word_is_in_the_vocabulary():
    source = TextSuiteSource(TextSuiteConfig(kind="generation", train_examples=50))
    known = set(source.vocabulary)
    dictionary = {}
    for name in source.names:
        for example in source.examples(name, "train"):
            words, target = example.text.split(), example.target.split()
            assert known >= {*words, *target}
            assert example.references == (example.target,)
            if name == "reverse":
                assert target == words[::-1]
            elif name == "shorten":
                assert target == words[::2]
            elif name == "add":
                assert int(target[-1]) == int(words[0]) + int(words[2])
            else:
                assert all(
                    dictionary.setdefault(word, other) == other for word, other in zip(words, target, strict=True)
                )
    assert [source.spec(name).metric for name in source.names] == [
        "exact_match", "bleu", "rouge_l", "exact_match_final_number",
    ]  # fmt: skip


def test_an_unknown_task_is_refused(corpora):
    with pytest.raises(DataError, match=r"no such task among the embedded texts[\s\S]*prose0_a"):
        corpora.spec("prose9_a")
