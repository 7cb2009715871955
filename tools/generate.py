#!/usr/bin/env python3
"""Continues prompts with a language model's checkpoint, on one process, whatever placement wrote it.

python tools/generate.py runs/lm_corpora/checkpoints/step_400 --task shakespeare "ROMEO:" data.root=SETS
python tools/generate.py runs/gen_tasks/checkpoints/step_600 --task reverse "drabo kiflu"

A generation task's text is put into the run's prompt template; a corpus is continued as it stands.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from distmoe.data.indexed.tokens import end_token_id, fill_prompt
from distmoe.errors import ConfigError, DistmoeError
from distmoe.models.generation import Prompt, generate
from distmoe.models.multitask_decoder import MultiTaskDecoder
from distmoe.models.sampling import Sampling
from distmoe.seed import generator
from distmoe.training.from_checkpoint import Loaded, load_checkpoint


def continue_texts(
    loaded: Loaded, *, task: str, texts: list[str], max_new_tokens: int, sampling: Sampling, seed: int
) -> list[str]:
    """Returns what follows each text.

    Raises:
        ConfigError: If the checkpoint is no language model, a text has no token, or the context is too short.
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
    task_id = tasks.id_of(task)
    is_pair = tasks[task_id].kind == "generation"
    prompts = []
    for text in texts:
        shown = fill_prompt(loaded.config.data.prompt, text) if is_pair else text
        ids = tokenizer(shown, add_special_tokens=is_pair)["input_ids"]
        if not ids:
            raise ConfigError(
                "a prompt has no token",
                got=repr(text),
                expected="a text of one token or more",
                remedy="give the model something to continue",
            )
        prompts.append(Prompt(ids, task_id))
    found = generate(
        model.eval(),
        prompts,
        max_new_tokens=max_new_tokens,
        end_token_ids=(end_token_id(tokenizer),),
        sampling=sampling,
        generator=generator(seed, "generate"),
    )
    return [str(tokenizer.decode(ids)) for ids in found]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Continue prompts with a checkpoint.")
    parser.add_argument("checkpoint", type=Path, help="folder step_N of a run")
    parser.add_argument("rest", nargs="+", metavar="TEXT | section.key=value", help="prompts, and overrides of the run")
    parser.add_argument("--task", required=True, help="whose experts and head continue the texts")
    parser.add_argument("--max_new_tokens", type=int, default=64, help="longest continuation (default: 64)")
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
