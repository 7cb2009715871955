#!/usr/bin/env python3
"""Continues prompts with a language model's checkpoint, on one process, whatever placement wrote it.

python tools/generate.py runs/lm_corpora/checkpoints/step_400 --task shakespeare "ROMEO:" data.root=SETS
python tools/generate.py runs/gen_tasks/checkpoints/step_600 --task reverse "drabo kiflu"

A generation task's text is put into the run's prompt template; a corpus is continued as it stands. An answer ends at
the model's context, as with tools/predict.py.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from distmoe import log
from distmoe.data.indexed.tokens import end_token_id, fill_prompt
from distmoe.errors import ConfigError, DistmoeError
from distmoe.models.generation import Prompt, generate
from distmoe.models.multitask_decoder import MultiTaskDecoder
from distmoe.models.sampling import Sampling
from distmoe.seed import generator
from distmoe.training.from_checkpoint import Loaded, load_checkpoint

_logger = log.get_logger("tools.generate")


def continue_texts(
    loaded: Loaded, *, task: str, texts: list[str], max_new_tokens: int, sampling: Sampling, seed: int
) -> list[str]:
    """Returns what follows each text, at most up to the model's context.

    Raises:
        ConfigError: If the checkpoint is no language model, no token may be generated, or a text has no token or fills
            the context.
        DataError: If there is no such task.
    """
    model, tokenizer, tasks = loaded.model, loaded.sources.tokenizer, loaded.sources.tasks
    if not isinstance(model, MultiTaskDecoder):
        raise ConfigError(
            "this checkpoint cannot continue a text",
            got="an encoder",
            expected="a run with model.family=decoder",
            remedy="use tools/predict.py with its export",
        )
    if max_new_tokens < 1:
        raise ConfigError(
            "an answer needs room",
            got=f"--max_new_tokens {max_new_tokens}",
            expected="1 or more",
            remedy="correct --max_new_tokens",
        )
    task_id = tasks.id_of(task)
    is_pair = tasks[task_id].kind == "generation"
    context = model.shape.max_positions
    prompts, limits = [], []
    for text in texts:
        shown = fill_prompt(loaded.config.data.prompt, text) if is_pair else text
        ids = tokenizer(shown, add_special_tokens=is_pair)["input_ids"]
        room = context - len(ids)
        if not ids or room < 1:
            raise ConfigError(
                "a text leaves nothing to generate",
                got=f"{len(ids)} tokens of prompt: {text[:60]!r}",
                expected=f"1 to {context - 1}",
                remedy="give another text",
            )
        if room < max_new_tokens:
            _logger.warning("the context of %d tokens leaves %d to the answer to %r", context, room, text[:60])
        prompts.append(Prompt(ids, task_id))
        limits.append(min(max_new_tokens, room))
    draws = generator(seed, "generate")
    answers: dict[int, str] = {}
    for limit in sorted(set(limits), reverse=True):
        rows = [row for row, own in enumerate(limits) if own == limit]
        found = generate(
            model.eval(),
            [prompts[row] for row in rows],
            max_new_tokens=limit,
            end_token_ids=(end_token_id(tokenizer),),
            sampling=sampling,
            generator=draws,
        )
        answers |= {row: str(tokenizer.decode(ids)) for row, ids in zip(rows, found, strict=True)}
    return [answers[row] for row in range(len(texts))]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Continue prompts with a checkpoint.")
    parser.add_argument("checkpoint", type=Path, help="folder step_N of a run")
    parser.add_argument("rest", nargs="+", metavar="TEXT | section.key=value", help="prompts, and overrides of the run")
    parser.add_argument("--task", required=True, help="whose experts and head continue the texts")
    parser.add_argument(
        "--max_new_tokens",
        type=int,
        default=64,
        help="longest continuation (default: 64)",
    )
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (default): the most probable token")
    parser.add_argument("--top_k", type=int, help="draw from so many most probable tokens only")
    parser.add_argument("--top_p", type=float, default=1.0, help="draw from tokens that have this probability together")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    arguments = parser.parse_intermixed_args(argv)
    sections = ("run.", "tasks.", "data.", "model.")
    overrides = [one for one in arguments.rest if one.startswith(sections) and "=" in one]
    texts = [one for one in arguments.rest if one not in overrides]
    torch.set_grad_enabled(False)
    try:
        sampling = Sampling(temperature=arguments.temperature, top_k=arguments.top_k, top_p=arguments.top_p)
        loaded = load_checkpoint(arguments.checkpoint, overrides)
        found = continue_texts(
            loaded, task=arguments.task, texts=texts, max_new_tokens=arguments.max_new_tokens, sampling=sampling,
            seed=arguments.seed,
        )  # fmt: skip
    except DistmoeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for text, answer in zip(texts, found, strict=True):
        print(f"{text}\n---\n{answer}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
