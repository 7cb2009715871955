import pytest

from distmoe.data.sources.labels import read_label
from distmoe.errors import DataError
from distmoe.tasks import TaskSpec

CLASSES = TaskSpec(name="c", kind="classification", metric="accuracy", labels=("no", "yes", "7"))
NUMBER = TaskSpec(name="r", kind="regression", metric="pearson")


@pytest.mark.parametrize(("raw", "label"), [(0, 0), (2, 2), ("yes", 1), ("1", 1), ("7", 2), (1.0, 1)])
def test_class_names_win_over_ids_and_digits_are_ids(raw, label):
    assert read_label(raw, CLASSES, "here") == label
    assert isinstance(read_label(raw, CLASSES, "here"), int)


@pytest.mark.parametrize("raw", [3, "3", 99])
def test_out_of_range_names_the_place_and_the_classes(raw):
    with pytest.raises(DataError, match=r"f\.jsonl:12: label out of range[\s\S]*0 \(no\) \| 1 \(yes\) \| 2 \(7\)"):
        read_label(raw, CLASSES, "f.jsonl:12")


def test_minus_one_is_explained_as_a_split_without_answers():
    with pytest.raises(DataError, match=r"out of range[\s\S]*splits without answers[\s\S]*validation is reported"):
        read_label(-1, CLASSES, "test, row 0")


@pytest.mark.parametrize(
    "raw", [None, True, 1.5, "maybe", "", "-", ["yes"], float("nan"), "--1", "+1", "1_0", "٣", "9" * 5000]
)
def test_what_is_no_class_is_refused(raw):
    with pytest.raises(DataError, match="label is"):
        read_label(raw, CLASSES, "here")


@pytest.mark.parametrize(("raw", "label"), [(3.75, 3.75), (2, 2.0), ("4.6", 4.6)])
def test_regression_targets_stay_floats(raw, label):
    assert read_label(raw, NUMBER, "here") == label
    assert isinstance(read_label(raw, NUMBER, "here"), float)


@pytest.mark.parametrize("raw", [float("nan"), float("inf"), "inf", "", "high", None, True])
def test_non_finite_targets_are_refused_with_their_place(raw):
    with pytest.raises(DataError, match=r"task 'r', f\.csv:3: label is not a finite number"):
        read_label(raw, NUMBER, "f.csv:3")
