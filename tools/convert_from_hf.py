#!/usr/bin/env python3
"""Checks a dense Hugging Face checkpoint and writes it as a clean start for routed layers.

python tools/convert_from_hf.py HF_DIR OUT
deepspeed --num_gpus 2 distmoe/train.py --recipe nlu model.pretrained=OUT

OUT holds the encoder alone (and the pooler, where there is one), or the whole decoder (Llama, Mistral, Qwen2, Qwen3):
float32, one safetensors file, today's tensor names, with config.json and tokenizer. Every tensor is accounted for:
nothing missing, nothing unexpected. A folder that passes here can also be given to model.pretrained as it is;
converting once saves every rank the checks.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Check and normalise a folder with a dense encoder or decoder.")
    parser.add_argument(
        "source", type=Path, metavar="HF_DIR", help="folder with config.json, safetensors and tokenizer"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="new folder to write")
    arguments = parser.parse_args(argv)

    from distmoe.checkpoint.normalise_hf import normalise
    from distmoe.errors import DistmoeError

    try:
        print(f"reading {arguments.source}", flush=True)
        print(normalise(arguments.source, arguments.out))
    except DistmoeError as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 2
    print(f"wrote {arguments.out}: use it as model.pretrained={arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
