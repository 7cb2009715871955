import pyarrow
import pyarrow.parquet
import pytest

from distmoe.data.sources.documents import count_documents, read_documents
from distmoe.errors import DataError

TEXT = "one\ntwo\n\n \nthree\n"


@pytest.mark.parametrize(
    ("unit", "texts"),
    [("file", [TEXT]), ("paragraph", ["one\ntwo", "three"]), ("line", ["one", "two", "", " ", "three"])],
)
def test_a_text_file_is_one_document_or_its_paragraphs_or_lines(tmp_path, unit, texts):
    (tmp_path / "a.txt").write_text(TEXT)
    assert [document.texts for document in read_documents(tmp_path / "a.txt", unit=unit)] == [(t,) for t in texts]
    assert count_documents(tmp_path / "a.txt", unit=unit) == len(texts)


def test_tables_give_the_columns_that_were_asked_for(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"q": ["a", "b"], "a": ["c", "d"]}), tmp_path / "t.parquet")
    (tmp_path / "t.jsonl").write_text('{"q": "a", "a": "c"}\n{"q": "b", "a": "d"}\n')
    for name in ("t.parquet", "t.jsonl"):
        found = [one.texts for one in read_documents(tmp_path / name, columns=("q", "a"))]
        assert found == [("a", "c"), ("b", "d")]
        assert count_documents(tmp_path / name) == 2


def test_a_csv_field_may_be_a_long_document(tmp_path):
    text = "word " * 40_000
    (tmp_path / "t.csv").write_text(f"text\n{text}\n")
    assert [one.texts for one in read_documents(tmp_path / "t.csv")] == [(text,)]


def test_a_missing_column_is_refused_with_its_line(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n{"body": "b"}\n')
    with pytest.raises(DataError, match=r"t\.jsonl:2: column 'text' is missing\n.*body"):
        list(read_documents(tmp_path / "t.jsonl"))


def test_plain_text_has_no_targets(tmp_path):
    (tmp_path / "a.txt").write_text(TEXT)
    with pytest.raises(DataError, match="plain text and has no columns"):
        list(read_documents(tmp_path / "a.txt", columns=("text", "target")))


def test_other_files_are_refused(tmp_path):
    (tmp_path / "a.pdf").write_text("x")
    with pytest.raises(DataError, match=r"a\.pdf holds no documents[\s\S]*a \.pdf file"):
        list(read_documents(tmp_path / "a.pdf"))
