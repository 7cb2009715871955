"""The word tokenizer of the embedded suite: one id per known word, in the Hugging Face format."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def build_word_tokenizer(words: Iterable[str], *, max_length: int = 512) -> PreTrainedTokenizerFast:
    """Returns a tokenizer with BERT's special tokens (ids 0..4), then ``words`` in their order.

    Pairs are ``[CLS] text [SEP] text_pair [SEP]`` with segment ids 0 and 1. Unknown words become ``[UNK]``.

    Args:
        words: Vocabulary; repeated words keep their first id.
        max_length: Longest sequence that the tokenizer claims to support; saved with an export.
    """
    vocabulary = list(dict.fromkeys((*SPECIAL_TOKENS, *(word.lower() for word in words))))
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
