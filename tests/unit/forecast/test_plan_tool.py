from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from distmoe.engine import ds_config
from distmoe.recipes.loader import resolve
from distmoe.train import parser as train_parser
from tests.unit.forecast.samples import TINY

_PATH = Path(__file__).parents[3] / "tools" / "plan.py"


@pytest.fixture(scope="module")
def plan():
    spec = importlib.util.spec_from_file_location("plan_tool", _PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_plan_names_every_part(plan, capsys, tmp_path):
    assert plan.main(["--recipe", "partitioned", "--gpus_per_node", "4", "--out", str(tmp_path), *TINY]) == 0
    out = capsys.readouterr().out
    for part in (
        "parameters:", "placement: partitioned", "ranks 0-1", "memory of the fullest rank", "global", "step: predicted",
        "; bound ", "rows per expert", "best of", "parallel.ep_size=",
    ):  # fmt: skip
        assert part in out, part


def test_the_plan_of_tensor_ranks_tells_their_collectives_apart(plan, capsys, tmp_path):
    sliced = ("parallel.tensor=2", "parallel.sequence=true")
    assert plan.main(["--gpus_per_node", "4", "--out", str(tmp_path), *TINY, *sliced]) == 0
    out = capsys.readouterr().out
    for part in ("1 nodes x 4 h100", "below are the 2 data ranks", "all-gathers, 5 reduce-scatters", "tensor 0."):
        assert part in out, part


def test_the_plan_as_json_ranks_feasible_arrangements(plan, capsys):
    assert plan.main(["--json", "--nodes", "2", "--gpus_per_node", "4", "--top", "3", *TINY]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["best"]) == 3
    assert all(one["refused"] is None and one["fits"] for one in found["best"])
    assert found["plan"]["memory_bytes"]["total"] > found["plan"]["memory_bytes"]["weights"] > 0


def test_json_says_what_the_text_says(plan, capsys):
    assert plan.main(["--json", "--nodes", "2", "--gpus_per_node", "4", "parallel.deepspeed=zero2_bf16", *TINY]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["plan"]["bucket"], found["plan"]["overlap_comm"]) == (200_000_000, True)
    assert found["memory_bytes_by_stage"]["2"] == found["plan"]["memory_bytes"]
    assert found["plan"]["memory_bytes"]["buffers"] == 2 * 200_000_000 * 2
    [host] = found["plan"]["ranks_of_tasks"]
    assert (host["parameters"], host["share_of_mixture_over_ranks"]) == (found["parameters"]["total"], 1)
    assert found["plan"]["traffic"]["messages_between"] == 0 < found["global_traffic"]["messages_between"]
    assert (found["cluster"]["data_ranks"], found["cluster"]["accelerator"]["name"]) == (8, "h100")
    assert found["arrangements"]["feasible"] > len(found["best"]) == 5


def test_each_arrangement_can_be_typed_and_bf16_sums_are_marked(plan, capsys, tmp_path):
    batches = ["data.micro_batch_size=4", "data.batch_size=64"]  # two micro-batches on each of eight ranks
    where = ["--out", str(tmp_path), "--top", "100"]
    assert plan.main([*where, "--gpu_memory", "40", *TINY, *batches]) == 0
    out = capsys.readouterr().out
    assert "40 GiB each" in out
    _, *rows = out[out.index("best of") :].splitlines()
    assert len(rows) > 5
    seen = set()
    for row in rows:
        typed, _, mark = row.split("GiB  ")[1].partition("  (")
        option, file, *overrides = typed.split()
        given = train_parser().parse_args([option, file, *overrides])
        config = resolve("demo", [*TINY, *batches, *given.overrides, f"parallel.deepspeed={given.deepspeed_config}"])
        settings = ds_config.resolve(
            config.parallel.deepspeed, optimizer=config.optimizer, micro_batch_size=4, accumulation_steps=2,
            num_ranks=8, device_type="cuda",
        )  # fmt: skip
        assert settings.rounds_sums == ("2 micro-batches in bf16" in mark)
        assert settings.stage == int(Path(file).stem[4])
        seen.add(file)
    assert {"zero1_bf16", "zero1_bf16_unequal"} < seen
    written = tmp_path / "zero2_bf16_bucket500000000.json"
    assert str(written) in seen
    assert json.loads(written.read_text())["zero_optimization"]["stage"] == 2


def test_an_impossible_plan_is_refused_in_four_parts(plan, capsys):
    assert plan.main(["--gpus_per_node", "3", *TINY]) == 2
    error = capsys.readouterr().err
    assert "got:" in error
    assert "remedy:" in error


def test_the_simulation_prints_its_table_and_draws(plan, capsys, tmp_path):
    assert plan.main(["--simulate", "16", "--gpus_per_node", "8", "--out", str(tmp_path), *TINY]) == 0
    assert "task group in a node" in capsys.readouterr().out
    assert (tmp_path / "simulation.png").is_file()
