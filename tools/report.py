#!/usr/bin/env python3
"""Redraws the report of a run: ``python tools/report.py runs/NAME``. The run may still be going."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from distmoe.errors import DistmoeError
from distmoe.training.report import draw_report


def main() -> int:
    parser = argparse.ArgumentParser(description="Redraw report/index.html and its pictures from a run's metrics.")
    parser.add_argument("run", type=Path, help="folder of the run, for example runs/demo")
    try:
        print(draw_report(parser.parse_args().run))
    except DistmoeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
