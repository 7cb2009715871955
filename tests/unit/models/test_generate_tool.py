"""``tools/generate.py`` continues every text up to its own limit."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from distmoe.data.config import DataConfig
from distmoe.errors import ConfigError
from distmoe.models.generation import Prompt, generate
from distmoe.models.sampling import Sampling
from tests.unit.checkpoint.tools import module_of
from tests.unit.data.indexed.toy_sets import END, TOKENIZER, ids
from tests.unit.models.decoder_samples import TASKS, decoder_config, make_decoder

MODEL = make_decoder(decoder_config())  # a context of 32 tokens
POEM = TASKS.id_of("poem")


def continued(*texts: str, max_new_tokens: int = 10) -> list[str]:
    loaded = SimpleNamespace(
        model=MODEL,
        config=SimpleNamespace(data=DataConfig()),
        sources=SimpleNamespace(tokenizer=TOKENIZER, tasks=TASKS),
    )
    settings = {"task": "poem", "max_new_tokens": max_new_tokens, "sampling": Sampling(), "seed": 0}
    found: list[str] = module_of("generate").continue_texts(loaded, texts=list(texts), **settings)
    return found


def test_an_answer_ends_at_the_context_and_the_others_do_not() -> None:
    texts = ("w1 w2", " ".join(["w3"] * 28), "w4")
    wanted = [
        generate(MODEL, [Prompt(ids(text), POEM)], max_new_tokens=limit, end_token_ids=(END,))[0]
        for text, limit in zip(texts, (10, 4, 10), strict=True)
    ]
    assert [len(answer) for answer in wanted] == [10, 4, 10]
    assert continued(*texts) == [TOKENIZER.decode(answer) for answer in wanted]


@pytest.mark.parametrize(("text", "count"), [("", 0), (" ".join(["w3"] * 32), 32)], ids=["nothing", "full"])
def test_a_text_that_leaves_nothing_to_generate_is_refused(text: str, count: int) -> None:
    with pytest.raises(ConfigError, match=rf"nothing to generate\n[\s\S]*{count} tokens of prompt[\s\S]*1 to 31"):
        continued("w1", text)


@pytest.mark.parametrize("room", [0, -3])
def test_an_answer_of_no_token_is_refused(room: int) -> None:
    with pytest.raises(ConfigError, match=rf"--max_new_tokens {room}\n  expected: 1 or more"):
        continued("w1", max_new_tokens=room)
