"""Which torch ``tools/install.sh`` installs: a CPU build without a GPU, and never CUDA silently.

``pip`` is a stand-in that writes down what it was asked, and answers a dry run with the packages of the case.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CPU_INDEX = "https://download.pytorch.org/whl/cpu"

FAKE_PIP = """#!/usr/bin/env bash
case "$*" in
    *--dry-run*) printf '{"install": [%s]}' "$FAKE_PACKAGES"; exit 0 ;;
    *--index-url*) echo "$*" >> "$FAKE_LOG"; exit "$FAKE_CPU_INDEX_RESULT" ;;
    *) echo "$*" >> "$FAKE_LOG" ;;
esac
"""
FAKE_PYTHON = """#!/usr/bin/env bash
case "$*" in
    *torch.version.cuda*) [ "$FAKE_CUDA" = yes ] ;;
    *'version("torch")'*) [ "$FAKE_HAS_TORCH" = yes ] ;;
    *) exec {real} "$@" ;;
esac
"""


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def install(
    folder: Path,
    *,
    packages: list[str],
    gpu: bool = False,
    has_torch: bool = False,
    cpu_index: bool = True,
    accelerator: str = "",
    cuda: bool = False,
):
    """Runs the script and returns the finished process and what pip was asked to install."""
    executable(folder / "venv/bin/pip", FAKE_PIP)
    executable(folder / "venv/bin/python", FAKE_PYTHON.format(real=sys.executable))
    executable(
        folder / "bin/nvidia-smi", f"#!/usr/bin/env bash\necho '{'GPU 0: some device' if gpu else 'No devices'}'\n"
    )
    log = folder / "log"
    log.touch()
    environment = os.environ | {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "TORCH": "torch==2.13.0",
        "ACCELERATOR": accelerator,
        "FAKE_CUDA": "yes" if cuda else "no",
        "FAKE_LOG": str(log),
        "FAKE_PACKAGES": ", ".join(f'{{"metadata": {{"name": "{name}"}}}}' for name in packages),
        "FAKE_HAS_TORCH": "yes" if has_torch else "no",
        "FAKE_CPU_INDEX_RESULT": "0" if cpu_index else "1",
    }
    command = [str(ROOT / "tools/install.sh"), str(folder / "venv"), "dev"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT)
    return done, log.read_text().splitlines()


PROJECT = "install --quiet --editable .[dev]"


def test_a_default_index_with_cpu_files_is_used(tmp_path):
    done, asked = install(tmp_path, packages=["torch", "sympy"])
    assert done.returncode == 0
    assert asked == ["install --quiet torch==2.13.0", PROJECT]


@pytest.mark.parametrize("cuda", ["nvidia-cudnn-cu13", "cuda-toolkit", "triton"])
def test_a_default_index_with_cuda_files_is_not(tmp_path, cuda):
    done, asked = install(tmp_path, packages=["torch", cuda])
    assert done.returncode == 0
    assert len(asked) == 2
    assert f"--index-url {CPU_INDEX} torch==2.13.0" in asked[0]
    assert asked[1] == PROJECT


def test_without_any_cpu_build_nothing_is_installed_and_the_reason_is_told(tmp_path):
    done, asked = install(tmp_path, packages=["torch", "nvidia-cudnn-cu13"], cpu_index=False)
    assert done.returncode == 1
    assert PROJECT not in asked
    assert all(part in done.stderr for part in ("no CPU build of torch", "got:", "expected:", "remedy:", CPU_INDEX))


def test_a_machine_with_a_gpu_gets_the_default_build_with_the_project(tmp_path):
    done, asked = install(tmp_path, packages=["torch", "nvidia-cudnn-cu13"], gpu=True)
    assert done.returncode == 0
    assert asked == [PROJECT]


def test_an_installed_torch_is_kept(tmp_path):
    _, asked = install(tmp_path, packages=["torch", "nvidia-cudnn-cu13"], has_torch=True)
    assert asked == [PROJECT]


def test_a_login_node_without_a_gpu_can_install_for_gpus(tmp_path):
    done, asked = install(tmp_path, packages=["torch", "nvidia-cudnn-cu13"], accelerator="cuda", cuda=True)
    assert (done.returncode, asked) == (0, [PROJECT])


def test_a_cpu_build_that_is_there_is_refused_where_gpus_are_wanted(tmp_path):
    done, _ = install(tmp_path, packages=["torch"], has_torch=True, accelerator="cuda", cuda=False)
    assert done.returncode == 1
    assert all(part in done.stderr for part in ("cannot use GPUs", "got:", "a CUDA build", "pip uninstall torch"))


def test_a_gpu_machine_can_install_for_cpus(tmp_path):
    done, asked = install(tmp_path, packages=["torch", "nvidia-cudnn-cu13"], gpu=True, accelerator="cpu")
    assert done.returncode == 0
    assert f"--index-url {CPU_INDEX} torch==2.13.0" in asked[0]


def test_an_unknown_accelerator_is_refused_before_anything_is_installed(tmp_path):
    done, asked = install(tmp_path, packages=["torch"], accelerator="tpu")
    assert (done.returncode, asked) == (1, [])
    assert "cuda | cpu" in done.stderr
