"""Tokenizers: any Hugging Face folder, and the word tokenizer of the embedded suite."""

from distmoe.tokenization.load import fingerprint, load_tokenizer
from distmoe.tokenization.word_tokenizer import build_word_tokenizer

__all__ = ["build_word_tokenizer", "fingerprint", "load_tokenizer"]
