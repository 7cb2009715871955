"""Links and commands of the documentation lead somewhere."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from distmoe.data.sources.suite import SuiteSource
from distmoe.recipes import resolve

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "ds_configs").glob("*.md")])


def anchors(page: Path) -> set[str]:
    """GitHub's names of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_of_a_page_exists(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


def test_commands_of_the_readme_name_scripts_and_targets_that_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    scripts = set(re.findall(r"\b((?:tools|distmoe)/[\w/]+\.py)", text))
    assert {"tools/predict.py", "distmoe/train.py"} <= scripts
    assert [script for script in sorted(scripts) if not (ROOT / script).is_file()] == []
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)\b", text)) <= targets


def test_the_text_that_make_demo_predicts_is_a_test_text_of_the_suite():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    text = re.search(r"^TEXT := (.*)$", makefile, flags=re.MULTILINE)[1]
    task, label = re.search(r"demo's task (\w+)\. Its label is class(\d)", makefile).groups()
    recipe = re.search(r"train\.py --recipe (\w+) run\.name=", makefile)[1]
    example = SuiteSource(resolve(recipe, []).tasks.suite).examples(task, "test")[0]
    assert (example.text, example.label) == (text, int(label))
    assert f"--task {task} " in makefile


def test_the_continuous_integration_script_runs_the_tests_from_a_clone():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert script.read_text().rstrip().endswith("exec make test")


def test_make_prefers_the_cpu_only_without_a_gpu(tmp_path):
    """``make -n`` with a stand-in for nvidia-smi: ranks and DeepSpeed's accelerator follow the number of GPUs."""

    def launched(num_gpus: int) -> tuple[str, str]:
        fake = tmp_path / "nvidia-smi"
        fake.write_text("#!/bin/sh\n" + "".join(f"echo 'GPU {i}: device'\n" for i in range(num_gpus)))
        fake.chmod(0o755)
        shown = (tmp_path / "show.mk").resolve()
        shown.write_text(f"include {ROOT / 'Makefile'}\nshow:\n\t@echo $(RANKS) [$$DS_ACCELERATOR]\n")
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
        done = subprocess.run(
            ["make", "-s", "-f", str(shown), "show"],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
            cwd=ROOT,
        )
        ranks, accelerator = done.stdout.split()
        return ranks, accelerator

    assert launched(0) == ("2", "[cpu]")
    assert launched(1) == ("1", "[]")
    assert launched(8) == ("2", "[]")
