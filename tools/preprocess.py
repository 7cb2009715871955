#!/usr/bin/env python3
"""Prepares the data cache of a run with one process, so that GPUs need not wait for it. Arguments of train.py.

python tools/preprocess.py --recipe nlu data.root=DATA model.pretrained=HF_DIR
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from distmoe import log
from distmoe.errors import DistmoeError
from distmoe.parallel.env import RankEnv
from distmoe.recipes.loader import DEFAULT_RECIPE, resolve
from distmoe.train import parser
from distmoe.training.agreement import Agreement
from distmoe.training.run_data import encode, open_sources


def main(argv: list[str] | None = None) -> int:
    try:
        arguments = parser("preprocess.py", __doc__.splitlines()[0]).parse_intermixed_args(argv)
        config = resolve(arguments.recipe or DEFAULT_RECIPE, arguments.overrides)
        log.configure()
        sources = open_sources(config)
        data = encode(sources, config, env=RankEnv(0, 1, 0, 1), agreement=Agreement())
    except DistmoeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, size in zip(sources.tasks.names, data.sizes, strict=True):
        print(f"{name}: {size.train} train, {size.validation} validation, {size.test} test, {size.truncated} cut")
    print(f"cache: {config.data.cache_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
