"""Entry point: ``deepspeed --num_gpus 8 distmoe/train.py --recipe demo section.key=value ...``.

Also ``python distmoe/train.py`` (one process), ``sbatch slurm/train.sbatch``, and ``srun --ntasks-per-node=G python
distmoe/train.py`` where MASTER_ADDR and MASTER_PORT are exported. A wrong value is refused before the first step,
in four lines, with exit code 2.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from pathlib import Path
from typing import NoReturn

if __name__ == "__main__":
    # Run by path, this folder comes first on the import path, where its children (data, config, ...) would shadow
    # installed modules; and distmoe itself need not be installed.
    _here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _here]
    sys.path.insert(0, str(_here.parent))

from distmoe import log
from distmoe.errors import ConfigError, DistmoeError, RankError, RendezvousError, RunEnded
from distmoe.training.stop_signal import StopSignal

USER_ERROR, OWN_ERROR = 2, 1
_HEAD_START = 3.0  # seconds that rank 0 has to speak, and its launcher to end the ranks that would repeat it


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line as every other user error: once, in four parts."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(
            "the command line cannot be read",
            got=message,
            expected=self.format_usage().removeprefix("usage: ").strip(),
            remedy=f"{self.prog} --help",
        )


def parser(prog: str = "train.py", description: str = "Train one model on many tasks.") -> argparse.ArgumentParser:
    """The command line of a run; tools that look at one before it starts take the same."""
    result = _Parser(prog=prog, description=description, allow_abbrev=False)
    result.add_argument(
        "--recipe", default=None, help="name of a shipped recipe or path of a YAML file (default: demo)"
    )
    result.add_argument("--deepspeed_config", metavar="FILE", help="name in ds_configs/ or path of a DeepSpeed JSON")
    result.add_argument(
        "--resume",
        default="auto",
        metavar="WHEN",
        help="auto: go on if the run has a checkpoint (default); must: only go on; never: start over, "
        "the older run is moved aside; or the path of a checkpoint",
    )
    result.add_argument("--local_rank", type=int, help="set by the deepspeed launcher")
    result.add_argument("--list-recipes", action="store_true", help="print the shipped recipes and leave")
    result.add_argument("--print-config", action="store_true", help="print the resolved configuration and leave")
    result.add_argument("overrides", nargs="*", metavar="section.key=value", help="values that win over the recipe's")
    return result


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    stop = StopSignal().expect_warning()
    try:
        return _run(parser().parse_intermixed_args(argv), stop)
    except RunEnded as ended:  # one rank has said why
        return ended.code
    except DistmoeError as error:
        report_unshared(error)
        return OWN_ERROR if isinstance(error, RendezvousError) else USER_ERROR


def report_unshared(error: DistmoeError) -> None:
    """Prints an error that this rank met before ranks could agree who speaks.

    Most are the same everywhere: rank 0 prints them at once, and the launcher ends the other ranks when it leaves. Who
    lives on after that may be alone with the error: a machine, for which its first rank speaks, or a single rank.
    """
    rank = log.own_rank()
    if rank:
        time.sleep(_HEAD_START)
    if rank == 0 or log.first_of_machine() or isinstance(error, RankError):
        sys.stderr.write(f"{f'[rank {rank}] ' if rank else ''}error: {error}\n")
        sys.stderr.flush()


def _run(arguments: argparse.Namespace, stop: StopSignal) -> int:
    from distmoe.recipes.loader import DEFAULT_RECIPE, available, resolve

    if arguments.list_recipes:
        print("\n".join(available()))
        return 0
    overrides = list(arguments.overrides)
    if arguments.deepspeed_config is not None:
        overrides.append(f"parallel.deepspeed={arguments.deepspeed_config}")
    config = resolve(arguments.recipe or DEFAULT_RECIPE, overrides)
    if arguments.print_config:
        import yaml

        print(yaml.safe_dump(config.model_dump(), sort_keys=False), end="")
        return 0
    log.configure()
    from distmoe.training.run import train

    train(config, resume=arguments.resume, stop=stop)
    return 0


def _leave(code: int) -> NoReturn:
    """Ends the process without Python's clean-up, which gloo's threads do not survive every time."""
    if "torch" in sys.modules:
        from distmoe.engine.distributed import shut_down

        shut_down(exit_code=code)
    sys.exit(code)


if __name__ == "__main__":
    try:
        exit_code = main()
    except SystemExit as asked:  # --help
        exit_code = asked.code if isinstance(asked.code, int) else OWN_ERROR
    except BaseException:
        traceback.print_exc()
        exit_code = OWN_ERROR
    _leave(exit_code)
