#!/usr/bin/env python3
"""Which task groups does a model suggest? No training: similarities, pictures, a section for a recipe.

python tools/learn_groups.py runs/NAME/checkpoints/step_N
python tools/learn_groups.py runs/NAME/checkpoints/step_N --tasks sst2 cola mrpc --threshold 0.9 --out groups
python tools/learn_groups.py HF_DIR --data FOLDER --tasks sst2 cola mrpc

Best is a checkpoint whose tasks have layers of their own (structure.grouping=per_task) and have trained for a while
from one start. In a dense model, or in a Hugging Face BERT or RoBERTa folder, only what tasks feed into the shared
layers can be compared; see docs/structural_learning.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Propose task groups from a trained model.")
    parser.add_argument("source", type=Path, help="folder runs/NAME/checkpoints/step_N, or a Hugging Face folder")
    parser.add_argument("--data", type=Path, help="folder of task folders; for a Hugging Face folder")
    parser.add_argument("--tasks", nargs="+", metavar="NAME", help="look at these tasks only")
    parser.add_argument("--threshold", type=float, default=0.8, help="join tasks above this similarity (default: 0.8)")
    parser.add_argument("--examples", type=int, default=1024, help="training examples to compare on (default: 1024)")
    parser.add_argument("--out", type=Path, help="folder for pictures, similarities and the recipe section")
    arguments = parser.parse_args(argv)

    from distmoe.errors import DistmoeError
    from distmoe.training.report import offline as pictures
    from distmoe.training.structural.offline import examine

    try:
        finding = examine(
            arguments.source,
            data=arguments.data,
            names=arguments.tasks,
            threshold=arguments.threshold,
            num_examples=arguments.examples,
        )
    except DistmoeError as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 2
    print(f"similarity: {finding.measure}")
    for layer in finding.layers:
        print(f"layer {layer.layer}")
        rows = [] if layer.similarity is None else layer.similarity.to_json()
        for own, row in zip(layer.members, rows, strict=False):
            names = ", ".join(finding.tasks[task].name for task in own)
            print(f"  {names:24} " + " ".join(f"{value:6.3f}" for value in row))
    print(finding.recipe(), end="")
    if arguments.out is not None:
        pictures.draw(finding, arguments.out, threshold=arguments.threshold)
        similarities = {
            f"layer_{layer.layer}": None if layer.similarity is None else layer.similarity.to_json()
            for layer in finding.layers
        }
        (arguments.out / "similarities.json").write_text(json.dumps(similarities, indent=1) + "\n", encoding="utf-8")
        (arguments.out / "structure.yaml").write_text(finding.recipe(), encoding="utf-8")
        print(f"wrote {arguments.out}: {', '.join(sorted(path.name for path in arguments.out.iterdir()))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
