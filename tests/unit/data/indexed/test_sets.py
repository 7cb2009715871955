import sys

import numpy as np
import pytest

from distmoe.data.indexed.documents import build_set
from distmoe.data.indexed.files import open_set, read_info
from distmoe.data.indexed.library import megatron_data
from distmoe.data.indexed.part import TokenPart
from distmoe.data.indexed.sets import open_windows, read_pairs
from distmoe.data.indexed.writer import IndexedWriter, choose_dtype
from distmoe.errors import ConfigError, DataError
from distmoe.tokenization import build_word_tokenizer
from tests.unit.data.indexed.toy_sets import END, TOKENIZER, documents, ids, write_by_megatron


def test_a_set_written_by_distmoe_is_read_by_megatron_token_for_token(tmp_path):
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    texts = documents(50)
    build_set(tmp_path / "own", lambda: [(text,) for text in texts], TOKENIZER)
    dataset = IndexedDataset(str(tmp_path / "own"))
    assert [sequence.tolist() for sequence in dataset[0 : len(dataset)]] == [[*ids(text), END] for text in texts]
    assert dataset.document_indices.tolist() == list(range(51))
    assert dataset.index.dtype == np.uint16


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_a_set_written_by_megatron_is_read_by_distmoe_token_for_token(tmp_path, dtype):
    sequences = [[*ids(text), END] for text in documents(50)]
    path = write_by_megatron(tmp_path / "theirs", sequences, dtype=dtype)
    dataset = open_set(path)  # its file is unmapped with the last reference, under the feet of what it returned
    assert [sequence.tolist() for sequence in dataset[0:50]] == sequences
    windows = open_windows({path: 0.0}, TOKENIZER, length=8, seed=0, limit=None, keep_last=True, where="task")
    tokens = [token for example in range(len(windows)) for token in windows.read(example).input_ids_S.tolist()]
    # All tokens but the last, which is only a label; windows and documents are shuffled.
    assert sorted([*tokens, END]) == sorted(token for sequence in sequences for token in sequence)


@pytest.mark.parametrize("per_document", [1, 2])
@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_documents_added_at_once_are_bytes_of_megatrons_builder_adding_them_one_by_one(tmp_path, per_document, dtype):
    texts = [[ids(text) for text in documents(per_document, seed=seed)] for seed in range(20)]
    texts[4] = texts[7] = []  # without text: left out
    builder = megatron_data().IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=dtype)
    for sequences in filter(None, texts):
        builder.add_document(np.concatenate(sequences), [len(sequence) for sequence in sequences])
    builder.finalize(str(tmp_path / "theirs.idx"))
    with IndexedWriter(tmp_path / "own", dtype=dtype) as writer:
        for some in (texts[:5], [[]], texts[5:7], texts[7:]):
            part = TokenPart.of(some, dtype=dtype)
            part.save(tmp_path / "part.npz")
            writer.add(TokenPart.join([TokenPart.of([], dtype=dtype), TokenPart.load(tmp_path / "part.npz")]))
    assert (writer.num_documents, writer.num_tokens) == (18, sum(len(ids) for one in texts for ids in one))
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"own{suffix}").read_bytes() == (tmp_path / f"theirs{suffix}").read_bytes()


def test_an_id_that_its_number_type_cannot_hold_is_not_wrapped():
    with pytest.raises(OverflowError):
        TokenPart.of([[[65536]]], dtype=np.uint16)


def test_a_failed_writer_leaves_nothing_behind(tmp_path):
    def fails():
        with IndexedWriter(tmp_path / "set", dtype=np.uint16) as writer:
            writer.add(TokenPart.of([[[1, 2]]], dtype=np.uint16))
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("size", "dtype"), [(65499, np.uint16), (65500, np.int32), (200_000, np.int32)])
def test_the_number_type_follows_the_vocabulary(size, dtype):
    assert choose_dtype("auto", vocab_size=size) is dtype


def test_a_vocabulary_larger_than_its_number_type_is_refused_with_both_numbers():
    assert choose_dtype("uint16", vocab_size=65536) is np.uint16
    with pytest.raises(ConfigError, match=r"does not fit[\s\S]*65537 tokens as uint16[\s\S]*at most 65536"):
        choose_dtype("uint16", vocab_size=65537)


def test_a_set_of_another_tokenizer_is_refused(tmp_path):
    build_set(tmp_path / "set", lambda: [("w1 w2 w3",)] * 9, TOKENIZER)
    other = build_word_tokenizer(["w3", "w2", "w1"])
    with pytest.raises(DataError, match=r"task 'prose'.*of another tokenizer[\s\S]*45 tokens[\s\S]*8 tokens"):
        open_windows(
            {str(tmp_path / "set"): 0.0}, other, length=4, seed=0, limit=None, keep_last=False, where="task 'prose'"
        )


def test_a_foreign_set_with_ids_outside_the_vocabulary_is_refused(tmp_path):
    path = write_by_megatron(tmp_path / "set", [[1, 2, 3, 4, 5, 6], [400, 2, 3]])
    arguments = {"length": 4, "seed": 0, "limit": None, "keep_last": True, "where": "task"}
    windows = open_windows({path: 0.0}, TOKENIZER, **arguments)
    with pytest.raises(DataError, match=r"outside the vocabulary[\s\S]*id 400[\s\S]*below 45"):
        [windows.read(example) for example in range(len(windows))]
    first = write_by_megatron(tmp_path / "first", [[400, 2, 3], [1, 2, 3, 4, 5, 6]])
    with pytest.raises(DataError, match=r"first document[\s\S]*id 400"):
        open_windows({first: 0.0}, TOKENIZER, **arguments)


def test_documents_are_no_pairs(tmp_path):
    build_set(tmp_path / "own", lambda: [("w1 w2",)], TOKENIZER)
    with pytest.raises(DataError, match=r"another kind of task[\s\S]*plain documents[\s\S]*--target_key"):
        read_pairs({str(tmp_path / "own"): 0.0}, TOKENIZER, prompt="{text}", where="task")
    theirs = write_by_megatron(tmp_path / "theirs", [[1, 2]])
    with pytest.raises(DataError, match=r"not a set of pairs[\s\S]*document 0 with 1 sequences"):
        read_pairs({theirs: 0.0}, TOKENIZER, prompt="{text}", where="task")


def test_a_cut_file_and_a_missing_set_are_refused(tmp_path):
    path = write_by_megatron(tmp_path / "set", [[1, 2, 3]])
    with pytest.raises(DataError, match=r"no indexed set at .*other"):
        open_set(tmp_path / "other")
    (tmp_path / "set.bin").write_bytes((tmp_path / "set.bin").read_bytes()[:-2])
    with pytest.raises(DataError, match=r"set\.bin does not fit its index[\s\S]*10 bytes[\s\S]*12 bytes"):
        open_set(path)


@pytest.mark.parametrize("suffix", [".bin", ".idx", ".json"])
def test_a_damaged_set_of_the_cache_is_built_again_and_a_whole_one_is_not(tmp_path, suffix):
    def build():
        built = []
        build_set(tmp_path / "set", lambda: built.append(1) or [("w1 w2 w3",)], TOKENIZER)
        return bool(built)

    file = tmp_path / f"set{suffix}"
    assert [build(), build()] == [True, False]
    whole = file.read_bytes()
    file.write_bytes(whole[:-2])
    assert [build(), build()] == [True, False]
    assert file.read_bytes() == whole


def test_a_damaged_description_is_refused(tmp_path):
    path = write_by_megatron(tmp_path / "set", [[1, 2, 3]])
    assert read_info(path) is None
    (tmp_path / "set.json").write_text('{"rows": 3}')
    with pytest.raises(DataError, match=r"set\.json does not describe an indexed set"):
        read_info(path)


def test_without_megatron_core_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "megatron.core.datasets.gpt_dataset", None)
    with pytest.raises(ConfigError, match=r'need megatron-core[\s\S]*pip install -e "\.\[lm\]"'):
        megatron_data()
