import json
import os
from dataclasses import replace

import pytest

from distmoe.data.indexed.files import open_set, read_info
from distmoe.data.indexed.preprocess import PreprocessJob, preprocess
from distmoe.data.indexed.sets import read_pairs
from distmoe.data.indexed.workers import Tokenizing
from distmoe.errors import ConfigError, DataError
from distmoe.tokenization import fingerprint, load_tokenizer
from tests.unit.data.indexed.toy_sets import END, TOKENIZER, documents, ids


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    TOKENIZER.save_pretrained(str(folder))
    return folder


@pytest.fixture
def job(tmp_path, tokenizer):
    texts = documents(30)
    texts[4] = ""
    rows = "".join(json.dumps({"text": text, "target": "w1 w2"}) + "\n" for text in texts)
    (tmp_path / "rows.jsonl").write_text(rows)
    return PreprocessJob(
        inputs=(tmp_path / "rows.jsonl",), prefix=tmp_path / "set", tokenizer=tokenizer, part_documents=4
    )


def test_documents_end_with_the_end_token_and_empty_ones_are_counted(job):
    info = preprocess(job)
    texts = [text for index, text in enumerate(documents(30)) if index != 4]
    dataset = open_set(job.prefix)
    assert [sequence.tolist() for sequence in dataset[0 : len(dataset)]] == [[*ids(text), END] for text in texts]
    assert (info.num_documents, info.num_empty) == (29, 1)
    assert info.num_tokens == sum(len(ids(text)) + 1 for text in texts)
    assert read_info(job.prefix) == info
    assert info.tokenizer == fingerprint(load_tokenizer(job.tokenizer))
    assert not (job.prefix.parent / "set.parts").exists()


def test_two_processes_write_what_one_writes(job, tmp_path):
    preprocess(job)
    preprocess(replace(job, prefix=tmp_path / "two", workers=2))
    for suffix in (".bin", ".idx", ".json"):
        assert (tmp_path / f"two{suffix}").read_bytes() == (tmp_path / f"set{suffix}").read_bytes()


def test_a_killed_call_goes_on_with_the_parts_that_are_missing(job, tmp_path, monkeypatch):
    preprocess(replace(job, prefix=tmp_path / "whole"))
    write, written = Tokenizing.write_part, []

    def dies(self, prefix, index, texts):
        if index == 3:
            raise KeyboardInterrupt
        return write(self, prefix, index, texts)

    def counts(self, prefix, index, texts):
        written.append(index)
        return write(self, prefix, index, texts)

    monkeypatch.setattr(Tokenizing, "write_part", dies)
    with pytest.raises(KeyboardInterrupt):
        preprocess(job)
    assert not (tmp_path / "set.idx").exists()
    monkeypatch.setattr(Tokenizing, "write_part", counts)
    preprocess(job)
    assert written == [3, 4, 5, 6, 7]
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"set{suffix}").read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()
    assert preprocess(job) == read_info(job.prefix)
    assert written == [3, 4, 5, 6, 7]


def test_a_call_killed_around_the_last_step_is_repeated(job, tmp_path, monkeypatch):
    preprocess(replace(job, prefix=tmp_path / "whole"))
    put = os.replace

    def dies_behind(suffix):
        def replaces(source, target):
            put(source, target)
            if str(target) == f"{job.prefix}{suffix}":
                raise KeyboardInterrupt

        monkeypatch.setattr("distmoe.data.indexed.writer.os.replace", replaces)

    for suffix in (".bin", ".idx"):
        dies_behind(suffix)
        with pytest.raises(KeyboardInterrupt):
            preprocess(job)
    monkeypatch.setattr("distmoe.data.indexed.writer.os.replace", put)
    assert (tmp_path / "set.parts").is_dir()
    assert preprocess(job) == read_info(tmp_path / "whole")
    for suffix in (".bin", ".idx", ".json"):
        assert (tmp_path / f"set{suffix}").read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()
    assert not (tmp_path / "set.parts").exists()


@pytest.mark.parametrize("restart", [True, False])
def test_what_a_killed_writer_left_aside_is_removed_and_nothing_else(job, tmp_path, restart):
    others = [".settle.0123456789ab.bin", ".set.0123456789ab.npz", ".set.notes.bin"]
    for name in (".set.0123456789ab.bin", ".set.ba9876543210.idx", *others):
        (tmp_path / name).write_bytes(b"x")
    preprocess(job, restart=restart)
    assert sorted(path.name for path in tmp_path.glob(".set*")) == sorted(others)


@pytest.mark.slow
def test_a_set_of_other_inputs_is_not_overwritten(job):
    preprocess(job)
    other = replace(job, part_documents=5)
    with pytest.raises(ConfigError, match=r"already[\s\S]*--restart"):
        preprocess(other)
    assert preprocess(other, restart=True).num_documents == 29


def test_parts_of_another_call_are_not_mixed_in(job, monkeypatch):
    def dies(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Tokenizing, "write_part", dies)
        with pytest.raises(KeyboardInterrupt):
            preprocess(job)
    with pytest.raises(ConfigError, match=r"parts of another call[\s\S]*--restart"):
        preprocess(replace(job, part_documents=5))


def test_pairs_are_prompt_and_target_with_the_end_token(job):
    info = preprocess(replace(job, columns=("text", "target")))
    pairs = read_pairs({str(job.prefix): 0.0}, TOKENIZER, prompt=job.prompt, where="task")
    texts = [text for index, text in enumerate(documents(30)) if index != 4]
    assert info.has_targets
    assert info.prompt == job.prompt == "{text}\n"
    assert [target.tolist() for _, target in pairs] == [[*ids("w1 w2"), END]] * 29
    assert [prompt.tolist() for prompt, _ in pairs] == [TOKENIZER(text)["input_ids"] for text in texts]


def test_references_are_named_as_left_out_once_and_only_where_there_are_targets(job, caplog):
    rows = [
        {"text": "w1", "target": "w2"} | more for more in ({}, {"references": ["w2", "w3"]}, {"references": ["w4"]})
    ]
    job.inputs[0].write_text("".join(json.dumps(row) + "\n" for row in rows))
    with caplog.at_level("WARNING", logger="distmoe"):
        preprocess(job, restart=True)
        assert caplog.messages == []
        preprocess(replace(job, columns=("text", "target")), restart=True)
    (told,) = caplog.messages
    assert told.startswith(f"{job.inputs[0]}:2 has references")


def test_a_template_without_a_place_for_the_text_is_refused_for_pairs(job):
    with pytest.raises(ConfigError, match=r"--prompt has no place for the text[\s\S]*'Answer:'"):
        preprocess(replace(job, columns=("text", "target"), prompt="Answer:"))
    assert preprocess(replace(job, prompt="Answer:")).num_documents == 29  # plain documents have no prompt


def test_a_vocabulary_that_does_not_fit_is_refused_before_any_input_is_read(job, monkeypatch):
    monkeypatch.setattr(type(TOKENIZER), "__len__", lambda self: 70_000)
    with pytest.raises(ConfigError, match="70000 tokens as uint16"):
        preprocess(replace(job, dtype="uint16"))


def test_inputs_without_text_are_refused(job, tmp_path):
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(DataError, match=r"no document has text[\s\S]*2 empty documents"):
        preprocess(replace(job, inputs=(tmp_path / "empty.txt",), unit="line"))
    with pytest.raises(DataError, match=r"missing\.txt holds no documents[\s\S]*no such file"):
        preprocess(replace(job, inputs=(tmp_path / "missing.txt",)))
