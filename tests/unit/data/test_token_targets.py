"""From text and target, or from documents, to what the model is asked for."""

import json
import os

import numpy as np
import pytest
import torch

from distmoe.config import build
from distmoe.data.batch import NO_LOSS
from distmoe.data.collate import collate, placeholder
from distmoe.data.config import DataConfig, IndexedTaskConfig, SamplingConfig, TasksConfig, TextSuiteConfig
from distmoe.data.encoded import ExampleStore
from distmoe.data.loader import TrainLoader
from distmoe.data.prepare import encode_tasks
from distmoe.data.preprocess import join_pairs
from distmoe.data.sources.load import load_tasks
from distmoe.data.sources.local import LocalSource
from distmoe.data.sources.text_suite import TextSuiteSource
from distmoe.errors import ConfigError, DataError
from distmoe.tasks import TaskSet
from distmoe.tokenization import build_word_tokenizer
from tests.unit.data import toy
from tests.unit.data.indexed.toy_sets import END, TOKENIZER, ids, write_by_megatron

CLS, SEP = TOKENIZER.cls_token_id, TOKENIZER.sep_token_id


def config(tmp_path, **changes):
    return DataConfig(**{"cache_dir": str(tmp_path / "cache"), "max_length": 16, **changes})


def a_folder(tmp_path):
    folder = tmp_path / "root" / "turn"
    folder.mkdir(parents=True)
    (folder / "task.json").write_text('{"type": "generation", "metric": "exact_match"}')
    rows = [{"text": "w1 w2", "target": "w2 w1"}, {"text": "w3", "target": "w4", "references": ["w4", "w5"]}]
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "root")


def encode(source, tmp_path, tokenizer=TOKENIZER, **changes):
    tasks = TaskSet(tuple(source.spec(name) for name in source.names))
    return tasks, encode_tasks(tasks, source, tokenizer, config(tmp_path, **changes))[0]


def test_the_loss_is_on_the_target_and_its_end(tmp_path):
    """[CLS] w1 w2 [SEP] | w2 w1 [SEP]: the first target token is predicted from the prompt's last."""
    _, encoded = encode(LocalSource(a_folder(tmp_path)), tmp_path)
    batch = collate(ExampleStore.join(encoded.train), np.array([0, 1]), np.ones(2), pad_token_id=0)
    w1, w2, w3, w4 = ids("w1 w2 w3 w4")
    no = NO_LOSS
    assert batch.input_ids_BS.tolist() == [[CLS, w1, w2, SEP, w2, w1, SEP], [CLS, w3, SEP, w4, SEP, 0, 0]]
    assert batch.labels_BS.tolist() == [[no, no, no, w2, w1, SEP, no], [no, no, w4, SEP, no, no, no]]
    assert batch.target_index_L.tolist() == [3, 4, 5, 9, 10]
    assert batch.position_ids_BS is None
    assert batch.segment_ids_BS is None
    assert encoded.validation[0].references == (("w2 w1",), ("w4", "w5"))


def test_the_cache_gives_back_prompts_and_references(tmp_path):
    source = LocalSource(a_folder(tmp_path))
    (_, first), (_, again) = encode(source, tmp_path), encode(source, tmp_path)
    assert again.train[0].references == first.train[0].references
    assert again.train[0].prompt_lengths_N.tolist() == first.train[0].prompt_lengths_N.tolist() == [4, 3]


def test_a_long_pair_loses_the_beginning_of_its_prompt_first_and_is_counted():
    pairs = [
        (np.arange(10, 20), np.array([1, 2])),
        (np.arange(10, 12), np.arange(20, 30)),
        (np.array([5]), np.array([6])),
    ]
    split = join_pairs(pairs, [("",)] * 3, max_length=6)
    rows = np.split(split.input_ids_T, split.starts_N[1:])
    assert [row.tolist() for row in rows] == [[16, 17, 18, 19, 1, 2], [11, 20, 21, 22, 23, 24], [5, 6]]
    assert split.prompt_lengths_N.tolist() == [4, 1, 1]
    assert split.num_truncated == 2


def test_an_empty_target_is_refused_with_its_row(tmp_path):
    root = a_folder(tmp_path)
    path = tmp_path / "root" / "turn" / "train.jsonl"
    path.write_text('{"text": "w1", "target": ""}\n')
    with pytest.raises(DataError, match=r"task 'turn', train, example 0: text or target has no token"):
        encode(LocalSource(root), tmp_path)


def test_references_that_are_no_texts_are_refused(tmp_path):
    root = a_folder(tmp_path)
    (tmp_path / "root" / "turn" / "train.jsonl").write_text('{"text": "w1", "target": "w2", "references": "w2"}\n')
    with pytest.raises(DataError, match=r"train\.jsonl:1: 'references' is no list of texts"):
        encode(LocalSource(root), tmp_path)


def test_a_prompt_template_without_a_place_for_the_text_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.prompt has no place for the text"):
        encode(LocalSource(a_folder(tmp_path)), tmp_path, prompt="Answer:")


def test_mixed_rows_and_a_placeholder_have_the_same_fields(tmp_path):
    """A labelled row, a pair, and a window of two documents in one batch."""
    _, pairs = encode(LocalSource(a_folder(tmp_path)), tmp_path)
    path = write_by_megatron(tmp_path / "set", [[7, END], [8, 9, END], [7, 7, 7, END]])
    source = load_tasks(
        TasksConfig(source="indexed", indexed={"prose": IndexedTaskConfig(train=path, validation=path)}), DataConfig()
    )[1]
    _, prose = encode(source, tmp_path, max_length=5)
    store = ExampleStore.join((toy.split(3, types=False), pairs.train[0], prose.validation[0]))
    batch = collate(store, np.array([0, 3, 5]), np.ones(3), pad_token_id=0)
    assert (batch.labels_BS[0] == NO_LOSS).all()
    assert batch.labels_BS[1].tolist().count(NO_LOSS) == batch.labels_BS.shape[1] - 3
    window = prose.validation[0].read(0)
    length = len(window)
    assert batch.input_ids_BS[2, :length].tolist() == window.input_ids_S.tolist()
    assert batch.labels_BS[2, :length].tolist() == window.labels_S.tolist()
    assert batch.segment_ids_BS[2, :length].tolist() == window.segment_ids_S.tolist()
    assert (batch.labels_BS[2, length:] == NO_LOSS).all()
    lone = placeholder(task_id=0, pad_token_id=0, store=store)
    assert lone.tensors().keys() == batch.tensors().keys()
    assert lone.labels_BS.tolist() == [[NO_LOSS]]


def an_indexed_folder(tmp_path):
    from distmoe.data.indexed.preprocess import PreprocessJob, preprocess

    a_folder(tmp_path)
    TOKENIZER.save_pretrained(str(tmp_path / "tokenizer"))
    preprocess(
        PreprocessJob(
            inputs=(tmp_path / "root" / "turn" / "train.jsonl",),
            prefix=tmp_path / "turn_train",
            tokenizer=tmp_path / "tokenizer",
            columns=("text", "target"),
        )
    )
    task = IndexedTaskConfig(kind="generation", metric="exact_match", train="turn_train", validation="turn_train")
    return load_tasks(TasksConfig(source="indexed", indexed={"turn": task}), DataConfig(root=str(tmp_path)))[1]


def test_an_indexed_generation_set_gives_what_its_texts_give(tmp_path):
    source = an_indexed_folder(tmp_path)
    (_, from_set), (_, from_text) = encode(source, tmp_path), encode(LocalSource(str(tmp_path / "root")), tmp_path)
    assert from_set.train[0].input_ids_T.tolist() == from_text.train[0].input_ids_T.tolist()
    assert from_set.train[0].prompt_lengths_N.tolist() == from_text.train[0].prompt_lengths_N.tolist()
    assert from_set.train[0].references == (("w2 w1",), ("w4",))


def test_a_set_of_another_template_of_prompts_is_refused_also_where_its_tokens_are_cached(tmp_path):
    source = an_indexed_folder(tmp_path)
    encode(source, tmp_path)
    with pytest.raises(
        DataError, match=r"task 'turn', train: .*another template[\s\S]*'\{text\}\\n'[\s\S]*='Q: \{text\}'"
    ):
        encode(source, tmp_path, prompt="Q: {text}")
    described = tmp_path / "turn_train.json"
    values = json.loads(described.read_text())
    described.write_text(json.dumps(values | {"prompt": "Q: {text}"}))
    with pytest.raises(DataError, match="prompts of another template"):
        encode(source, tmp_path)
    del values["prompt"]  # a set of an older distmoe: its template is not known
    described.write_text(json.dumps(values))
    assert len(encode(source, tmp_path)[1].train[0]) == 2


def test_sets_of_another_tokenizer_are_refused_between_tasks(tmp_path):
    from distmoe.data.indexed.documents import build_set

    build_set(tmp_path / "own", lambda: [("w1 w2 w3 w4",)] * 9, TOKENIZER)
    build_set(tmp_path / "other", lambda: [("w1 w2 w3 w4",)] * 9, build_word_tokenizer(["w1", "w2", "w3", "w4"]))
    tasks = {name: IndexedTaskConfig(train=name, validation=name) for name in ("own", "other")}
    source = load_tasks(TasksConfig(source="indexed", indexed=tasks), DataConfig(root=str(tmp_path)))[1]
    with pytest.raises(DataError, match=r"task 'other', train.*token ids of another tokenizer"):
        encode(source, tmp_path, max_length=5)


def test_documents_of_any_source_become_windows_and_are_cached(tmp_path):
    suite = TextSuiteSource(TextSuiteConfig(train_examples=20, eval_examples=5))
    tokenizer = build_word_tokenizer(suite.vocabulary)
    tasks, encoded = encode(suite, tmp_path, tokenizer)
    assert tasks.names == ("prose0_a", "prose0_b", "prose1_a", "prose1_b")
    files = sorted(path.name for path in (tmp_path / "cache").iterdir())
    assert len(files) == 3 * 12
    again = encode(suite, tmp_path, tokenizer)[1]
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == files
    for one, other in zip(encoded.train, again.train, strict=True):
        assert [one.read(i).input_ids_S.tolist() for i in range(3)] == [
            other.read(i).input_ids_S.tolist() for i in range(3)
        ]


def test_a_resumed_loader_gives_the_windows_of_the_uninterrupted_one(tmp_path):
    suite = TextSuiteSource(TextSuiteConfig(train_examples=20, eval_examples=5))
    tasks, encoded = encode(suite, tmp_path, build_word_tokenizer(suite.vocabulary))

    def loader():
        settings = DataConfig(batch_size=8, sampling=SamplingConfig(bucket_window=3))
        return TrainLoader(
            encoded, tasks=tasks, config=settings, placement=toy.placement([(1, (0, 1, 2, 3))]), rank=0, seed=0
        )

    whole, first, second = loader(), loader(), loader()
    for _ in range(5):
        whole.next_step(), first.next_step()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for _ in range(20):
        for ours, theirs in zip(second.next_step(), whole.next_step(), strict=True):
            assert ours.tensors().keys() == theirs.tensors().keys()
            assert all(torch.equal(tensor, theirs.tensors()[name]) for name, tensor in ours.tensors().items())


def test_a_missing_set_is_refused_before_anything_is_read(tmp_path):
    task = IndexedTaskConfig(train="nowhere", validation="nowhere")
    with pytest.raises(DataError, match=r"task 'prose' has no indexed set for train[\s\S]*preprocess_indexed"):
        load_tasks(TasksConfig(source="indexed", indexed={"prose": task}), DataConfig(root=str(tmp_path)))


@pytest.mark.parametrize("weights", [{"a": 0.0, "b": 0.0}, {"a": 1.0, "b": -0.5}])
def test_weights_of_a_blend_are_above_zero(tmp_path, weights):
    task = IndexedTaskConfig(train=weights, validation="a")
    with pytest.raises(DataError, match=r"weights that are no shares[\s\S]*above 0[\s\S]*tasks\.indexed\.prose\.train"):
        load_tasks(TasksConfig(source="indexed", indexed={"prose": task}), DataConfig(root=str(tmp_path)))


def test_a_weight_of_a_blend_that_is_no_number_is_refused():
    with pytest.raises(ConfigError, match="train"):
        build(IndexedTaskConfig, {"train": {"a": float("nan"), "b": 1.0}, "validation": "a"})


def test_the_fingerprint_of_a_set_sees_size_and_time_of_its_ids(tmp_path):
    path = tmp_path / "a.bin"
    write_by_megatron(tmp_path / "a", [[7, 8, END]])
    task = IndexedTaskConfig(train="a", validation="a")
    source = load_tasks(TasksConfig(source="indexed", indexed={"prose": task}), DataConfig(root=str(tmp_path)))[1]
    time = path.stat().st_mtime_ns
    before = source.fingerprint("prose", "train")
    os.utime(path, ns=(time + 1, time + 1))
    assert source.fingerprint("prose", "train") != before
    os.utime(path, ns=(time, time))
    assert source.fingerprint("prose", "train") == before
    path.write_bytes(path.read_bytes()[:-2])
    os.utime(path, ns=(time, time))
    assert source.fingerprint("prose", "train") != before


def test_pairs_have_no_weights(tmp_path):
    task = IndexedTaskConfig(kind="generation", metric="bleu", train={"a": 1.0}, validation="a")
    with pytest.raises(DataError, match=r"sees every pair once[\s\S]*data\.sampling"):
        load_tasks(TasksConfig(source="indexed", indexed={"turn": task}), DataConfig(root=str(tmp_path)))
