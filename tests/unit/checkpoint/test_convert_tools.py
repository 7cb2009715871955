"""The command-line scripts tools/convert_*.py, called as functions."""

from pathlib import Path

import pytest

from tests.unit.checkpoint.samples import minilm_folder
from tests.unit.checkpoint.tools import main_of


def test_convert_from_hf_writes_a_readable_folder_and_says_what_it_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_of("convert_from_hf")([str(minilm_folder()), str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert "79 tensors loaded, 0 missing, 0 unexpected" in text
    assert "left out: embeddings.position_ids" in text
    assert f"model.pretrained={tmp_path / 'out'}" in text
    modes = {path.stat().st_mode for path in (tmp_path / "out").iterdir() if path.suffix in (".json", ".safetensors")}
    assert len(modes) == 1


@pytest.mark.parametrize("script", ["convert_from_hf", "convert_to_hf"])
def test_user_errors_end_with_code_2_and_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], script: str
) -> None:
    assert main_of(script)([str(tmp_path / "nothing"), str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    for part in ("error: ", "got: ", "expected: ", "remedy: "):
        assert part in captured.err
    assert not (tmp_path / "out").exists()
