import json

import pyarrow
import pyarrow.parquet
import pytest

from distmoe.data.config import DataConfig, TasksConfig
from distmoe.data.example import TaskExample
from distmoe.data.sources import LocalSource, load_tasks
from distmoe.errors import ConfigError, DataError

SPEC = {"type": "classification", "labels": ["bad", "good"], "metric": "accuracy", "family": "mood", "licence": "any"}
ROWS = [{"text": "fine", "label": 1}, {"text": "a, b", "label": "bad"}]
EXAMPLES = [TaskExample("fine", None, 1), TaskExample("a, b", None, 0)]


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def task(tmp_path):
    """Writes one task folder; a file given as None is left out."""

    def write(name="mood", spec=SPEC, **files):
        folder = tmp_path / name
        folder.mkdir()
        if spec is not None:
            (folder / "task.json").write_text(json.dumps(spec))
        for split in ("train", "validation"):
            content = files.pop(split, jsonl(ROWS))
            if content is not None:
                (folder / f"{split}.jsonl").write_text(content)
        for file, content in files.items():
            (folder / file.replace("__", ".")).write_text(content)
        return folder

    return write


def load(root, *names):
    return load_tasks(TasksConfig(source="local", names=list(names) or None), DataConfig(root=str(root)))


def test_a_folder_with_task_json_is_a_task_without_code(task, tmp_path):
    task()
    tasks, source = load(tmp_path)
    assert tasks.names == ("mood",)
    assert (tasks[0].labels, tasks[0].family, tasks[0].pair) == (("bad", "good"), "mood", False)
    assert source.splits("mood") == ("train", "validation")
    assert source.examples("mood", "train") == EXAMPLES


def test_csv_and_parquet_say_the_same_as_jsonl(task, tmp_path):
    folder = task(train=None, validation=None, train__csv='label,text\r\n1,fine\r\nbad,"a, b"\r\n')
    table = pyarrow.table({"text": ["fine", "a, b"], "label": ["good", "bad"], "more": [1, 2]})
    pyarrow.parquet.write_table(table, folder / "validation.parquet")
    source = LocalSource(str(tmp_path))
    assert source.examples("mood", "train") == EXAMPLES
    assert source.examples("mood", "validation") == EXAMPLES


def test_pair_regression_reads_both_texts_and_floats(task, tmp_path):
    row = {"text": "a", "text_pair": "b", "label": 3.75}
    task(spec={"type": "regression", "pair": True, "labels": [], "metric": "pearson"}, train=jsonl([row]))
    assert LocalSource(str(tmp_path)).examples("mood", "train") == [TaskExample("a", "b", 3.75)]


def test_the_order_of_names_is_the_order_of_ids(task, tmp_path):
    task("a")
    task("b")
    assert load(tmp_path)[0].names == ("a", "b")
    assert load(tmp_path, "b", "a")[0].names == ("b", "a")


def test_a_generation_task_has_targets_and_its_references(task, tmp_path):
    folder = task("story", spec={"type": "generation", "labels": [], "metric": "bleu"})
    rows = [{"text": "a", "target": "b", "references": ["b", "c"]}, {"text": "d", "target": "e"}]
    (folder / "train.jsonl").write_text(jsonl(rows))
    found = LocalSource(str(tmp_path)).examples("story", "train")
    assert [(one.text, one.target, one.references) for one in found] == [("a", "b", ("b", "c")), ("d", "e", ("e",))]


def test_the_fingerprint_follows_the_bytes(task, tmp_path):
    folder = task()
    source = LocalSource(str(tmp_path))
    before = source.fingerprint("mood", "train")
    (folder / "train.jsonl").write_text(jsonl([{"text": "fine", "label": 0}, ROWS[1]]))
    assert source.fingerprint("mood", "train") != before


@pytest.mark.parametrize("root", [None, "nowhere"])
def test_without_a_root_nothing_is_guessed(root):
    with pytest.raises(ConfigError, match=r"need a folder of task folders[\s\S]*data\.root"):
        LocalSource(root)


def test_an_unknown_task_lists_what_exists(task, tmp_path):
    task()
    with pytest.raises(DataError, match=r"no such task folder[\s\S]*modd[\s\S]*expected: mood"):
        load(tmp_path, "modd")


@pytest.mark.parametrize("names", [(), ("mood",)])
def test_a_folder_without_task_json_is_refused_also_when_not_named(task, tmp_path, names):
    task(spec=None)
    with pytest.raises(DataError, match=r"mood is not a task: it has no task\.json[\s\S]*train\.jsonl[\s\S]*remedy"):
        load(tmp_path, *names)


def test_an_empty_root_is_refused(tmp_path):
    with pytest.raises(DataError, match="the source offers no task"):
        load(tmp_path)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_missing_split_is_refused_before_anything_is_read(task, tmp_path, split):
    task(**{split: None})
    with pytest.raises(DataError, match=rf"has no {split} split[\s\S]*{split}\.jsonl \| {split}\.csv"):
        load(tmp_path)


def test_two_files_of_one_split_are_refused(task, tmp_path):
    task(train__csv="text,label\na,0\n")
    with pytest.raises(DataError, match=r"has the train split twice[\s\S]*train\.jsonl, train\.csv"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"split 'train' is empty"),
        ("\n\n", r"split 'train' is empty"),
        (jsonl([ROWS[0], {"text": "b", "label": 2}]), r"train\.jsonl:2: label out of range"),
        ("\n" + jsonl([{"text": "b", "label": "so-so"}]), r"train\.jsonl:2: label is no class"),
        (jsonl([{"sentence": "b", "label": 1}]), r"train\.jsonl:1: column 'text' is missing[\s\S]*sentence, label"),
        (jsonl([{"text": "b"}]), r"train\.jsonl:1: column 'label' is missing"),
        (jsonl([{"text": None, "label": 1}]), r"train\.jsonl:1: 'text' is not a text"),
        ('{"text": "b", "label": 1', r"train\.jsonl:1 is not JSON"),
        ("[1]\n", r"train\.jsonl:1 is not a JSON object"),
    ],
)
def test_bad_rows_are_refused_with_file_and_line(task, tmp_path, content, message):
    task(train=content)
    with pytest.raises(DataError, match=message):
        LocalSource(str(tmp_path)).examples("mood", "train")


@pytest.mark.parametrize(
    ("spec", "row", "remedy"),
    [
        (SPEC, {"label": 1}, r'"type": "pair_classification", or "pair": true in task\.json'),
        ({"type": "regression", "metric": "pearson"}, {"label": 0.5}, r'write "pair": true in task\.json'),
        ({"type": "generation", "metric": "bleu"}, {"target": "c"}, r"join both texts under 'text'"),
    ],
)
def test_a_second_text_that_the_task_would_not_read_is_refused(task, tmp_path, spec, row, remedy):
    first, second = {"text": "a", "text_pair": "", **row}, {"text": "a", "text_pair": "b", **row}
    task(spec=spec, train=jsonl([first]), validation=jsonl([first, second]))
    source = LocalSource(str(tmp_path))
    assert [one.text_pair for one in source.examples("mood", "train")] == [None]
    with pytest.raises(DataError, match=rf"validation\.jsonl:2: a second text[\s\S]*text_pair='b'[\s\S]*{remedy}"):
        source.examples("mood", "validation")


def test_a_csv_row_with_another_number_of_fields_is_refused(task, tmp_path):
    task(train=None, train__csv="text,label\nfine,1\na, b,0\n")
    with pytest.raises(
        DataError, match=r"train\.csv:3 has another number[\s\S]*3 fields[\s\S]*2 fields \(text, label\)"
    ):
        LocalSource(str(tmp_path)).examples("mood", "train")


def test_a_damaged_parquet_file_is_refused(task, tmp_path):
    folder = task(train=None)
    (folder / "train.parquet").write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(DataError, match=r"cannot read .*train\.parquet"):
        LocalSource(str(tmp_path)).examples("mood", "train")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"labels": ["a", "b"], "metric": "accuracy"}, r"key \'type\' is missing"),
        ({**SPEC, "type": "ranking"}, "unknown type"),
        ({**SPEC, "labels": ["one"]}, "two different class names"),
    ],
)
def test_a_contradictory_task_json_is_refused(task, tmp_path, spec, message):
    task(spec=spec)
    with pytest.raises(DataError, match=message):
        load(tmp_path)
