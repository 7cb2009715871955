"""CPU or GPU time of one routed layer, forward and backward, against its peers.

::

    python tools/bench/moe_layer.py                     # all shapes, fp32 and bf16
    python tools/bench/moe_layer.py --quick --json OUT.json

Unit: time relative to the *dense floor*, one dense SwiGLU on T K rows (the same FLOPs) measured in the same loop.
Protocol (README.md): one thread, processor time, outputs compared first, arms interleaved, medians. Wall time of a
shared processor says nothing. On CUDA, events instead, and TFLOP/s of forward and of backward at a production shape.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from moe_arms import Arm, Shape, load_skew, make_tokens, make_weights
from moe_peers import all_arms
from torch import Tensor

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Largest difference of outputs, relative to the largest output. bf16 routers of peers work in bf16 and choose other
# experts for near ties, so only fp32 is compared.
TOLERANCE = 2e-5


def shapes(tokens: int) -> list[Shape]:
    """Few coarse and many fine experts, balanced and skewed."""
    coarse = [Shape(tokens, 256, 512, 8, 2, skew) for skew in (None, 2.5)]
    fine = [Shape(tokens, 256, 128, 64, 6, skew) for skew in (None, 3.8)]
    return [*coarse, *fine]


def check_equal(arms: list[Arm], x_TD: Tensor) -> dict[str, float]:
    """Relative difference of every arm's output to the first exact one's.

    Raises:
        AssertionError: If an exact arm computes something else: its time would mean nothing.
    """
    with torch.no_grad():
        outputs = {arm.name: arm.forward(x_TD) for arm in arms if not arm.rows}
    reference = next(outputs[arm.name] for arm in arms if arm.exact)
    differences = {
        name: ((output - reference).abs().max() / reference.abs().max()).item() for name, output in outputs.items()
    }
    wrong = {arm.name: differences[arm.name] for arm in arms if arm.exact and differences[arm.name] > TOLERANCE}
    assert not wrong, f"arms that must be equal differ: {wrong}"
    return differences


def measure(arms: list[Arm], x_TD: Tensor, top_k: int, repeats: int) -> dict[str, tuple[float, float]]:
    """Median seconds (forward, backward) of every arm, interleaved, after one warm-up."""
    inputs = {True: x_TD.repeat_interleave(top_k, 0), False: x_TD}
    times: dict[str, list[tuple[float, float]]] = {arm.name: [] for arm in arms}
    clock = _clock(x_TD.device)
    for repeat in range(repeats + 1):
        for arm in arms:
            x = inputs[arm.rows].detach().requires_grad_()
            for parameter in arm.parameters:
                parameter.grad = None
            grad = torch.ones_like(x)
            start = clock()
            y = arm.forward(x)
            middle = clock()
            y.backward(grad)
            end = clock()
            if repeat:
                times[arm.name].append((middle - start, end - middle))
    return {
        name: (statistics.median(f for f, _ in pairs), statistics.median(b for _, b in pairs))
        for name, pairs in times.items()
    }


def _clock(device: torch.device) -> Callable[[], float]:
    if device.type == "cpu":
        return time.process_time

    def synchronised() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return synchronised


def run_shape(shape: Shape, precision: str, device: torch.device, repeats: int) -> dict[str, Any]:
    """Measures all arms at one shape; a row per arm."""
    weights = make_weights(shape, DTYPES[precision], device)
    x_TD = make_tokens(shape, DTYPES[precision], device)
    arms, left_out = all_arms(shape, weights)
    arms = [arm for arm in arms if _runs(arm, x_TD, left_out)]
    differences = check_equal(arms, x_TD) if precision == "fp32" else {}
    times = measure(arms, x_TD, shape.top_k, repeats)
    floor = sum(times["dense floor"])
    flops = 6 * shape.tokens * shape.top_k * shape.width * shape.expert_width
    return {
        "shape": asdict(shape),
        "precision": precision,
        "measured_skew": load_skew(weights.router_ED, shape),
        "left_out": left_out,
        "arms": {
            name: {
                "ratio": (forward + backward) / floor,
                "forward_ms": forward * 1e3,
                "backward_ms": backward * 1e3,
                "forward_tflops": flops / forward / 1e12,
                "backward_tflops": 2 * flops / backward / 1e12,
                "output_difference": differences.get(name),
            }
            for name, (forward, backward) in times.items()
        },
    }


def _runs(arm: Arm, x_TD: Tensor, left_out: dict[str, str]) -> bool:
    """Tries an arm once; a peer that fails here is reported, not hidden. distmoe must run."""
    if arm.rows or arm.name.startswith("distmoe"):
        return True
    try:
        x = x_TD.detach().requires_grad_()
        y = arm.forward(x)
        y.backward(torch.ones_like(y))
    except Exception as failure:
        left_out[arm.name] = f"{type(failure).__name__}: {failure}"
        return False
    return True


def print_table(results: list[dict[str, Any]], shapes_run: list[Shape]) -> None:
    """One row per arm, one column per shape and precision."""
    columns = [f"{result['precision']} {shape}" for result, shape in zip(results, shapes_run, strict=True)]
    for index, column in enumerate(columns):
        print(f"[{index}] {column}, measured skew {results[index]['measured_skew']:.2f}")
    names = list(dict.fromkeys(name for result in results for name in result["arms"]))
    print("\n| x dense floor | " + " | ".join(f"[{i}]" for i in range(len(columns))) + " |")
    print("|---|" + "---|" * len(columns))
    for name in names:
        cells = [f"{r['arms'][name]['ratio']:.2f}" if name in r["arms"] else "-" for r in results]
        print(f"| {name} | " + " | ".join(cells) + " |")
    for name, reason in {name: why for result in results for name, why in result["left_out"].items()}.items():
        print(f"left out: {name}: {reason}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="also write all numbers here")
    parser.add_argument("--quick", action="store_true", help="3 repeats instead of 7")
    parser.add_argument("--tokens", type=int, default=2048, help="T; more tokens hide more overhead")
    parser.add_argument("--precision", choices=[*DTYPES, "both"], default="both")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    todo = shapes(arguments.tokens)
    precisions = list(DTYPES) if arguments.precision == "both" else [arguments.precision]
    if device.type == "cuda":
        todo, precisions = [Shape(32768, 2048, 768, 128, 8, skew) for skew in (None, 2.5)], ["bf16"]
    repeats = 3 if arguments.quick else 7
    results, shapes_run = [], []
    for precision in precisions:
        for shape in todo:
            results.append(run_shape(shape, precision, device, repeats))
            shapes_run.append(shape)
    print(f"torch {torch.__version__}, {device}, {platform.processor() or platform.machine()}, {repeats} repeats\n")
    print_table(results, shapes_run)
    if device.type == "cuda":
        for name, row in results[0]["arms"].items():
            print(f"{name}: {row['forward_tflops']:.0f} / {row['backward_tflops']:.0f} TFLOP/s forward / backward")
    if arguments.json:
        arguments.json.write_text(json.dumps({"torch": torch.__version__, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
