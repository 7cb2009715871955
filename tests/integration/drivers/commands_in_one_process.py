"""Runs many command lines in one process and prints what each answered: importing torch once, not once per case.

Standard input is a JSON list of argument lists; the last line of the output is a JSON list of [exit code, stderr].
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from distmoe import train


def answer(arguments: list[str]) -> tuple[int, str]:
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr):
        code = train.main(arguments)
    return code, stderr.getvalue()


if __name__ == "__main__":
    answers = [answer(arguments) for arguments in json.load(sys.stdin)]
    print(json.dumps(answers), flush=True)
    train._leave(0)
