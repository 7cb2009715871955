"""One rank of :func:`tests.distributed.harness.run_ranks`: ``python -m tests.distributed.worker FOLDER``.

Reads ``FOLDER/call.pickle``, leaves ``FOLDER/<rank>.started`` once the imports are done and ``FOLDER/<rank>.answer``
with ``(True, value)`` or ``(False, (exception or None, traceback text, time))``.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist


def _publish(path: Path, answer: object) -> None:
    """Writes under another name first: the parent never sees half a file."""
    draft = path.with_suffix(".draft")
    draft.write_bytes(pickle.dumps(answer))
    draft.replace(path)


def _failure(error: BaseException) -> tuple[bool, object]:
    text = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
        picklable: BaseException | None = error
    except Exception:
        picklable = None
    return False, (picklable, text, time.time())


def _leave(code: int) -> None:
    """Ends without Python's clean-up: gloo's threads abort the process in it now and then."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main(folder: Path) -> None:
    rank = int(os.environ["RANK"])
    answer = folder / f"{rank}.answer"
    torch.set_num_threads(1)
    try:
        function, args, timeout, init_process_group = pickle.loads((folder / "call.pickle").read_bytes())
        (folder / f"{rank}.started").touch()
        # A hang prints where every thread stands, and ends by itself even if the parent is gone.
        faulthandler.dump_traceback_later(timeout, exit=True)
        if init_process_group:
            dist.init_process_group("gloo", timeout=timedelta(seconds=timeout))
        _publish(answer, (True, function(rank, *args)))
    except BaseException as error:
        _publish(answer, _failure(error))
        _leave(1)
    try:
        if dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()
    except Exception:  # another rank failed after this one had its answer; the parent reports that rank
        traceback.print_exc()
    _leave(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
