"""Tokenized corpora in megatron-core's format, a ``.bin`` and an ``.idx`` file: written, read, packed and blended."""
