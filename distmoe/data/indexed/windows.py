"""Windows of packed documents: the examples of a language modelling task, read from disk when they are used.

megatron-core shuffles the documents, cuts them into windows of ``length`` tokens and blends several sets; which window
is trained when is decided by distmoe's sampler. So an epoch sees every window once, and the state of a run is a count.

Every rank computes the same indices in memory (12 bytes per window), without a file or another rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from distmoe.data.indexed.files import open_set
from distmoe.data.indexed.library import megatron_data
from distmoe.data.indexed.packing import Window, pack
from distmoe.errors import DataError
from distmoe.seed import derive

# Of every blended set so many more windows are prepared than its share, because shares are rounded window by window.
_SURPLUS = 0.005


@dataclass(frozen=True)
class _Vocabulary:
    """What megatron-core wants to know of a tokenizer. Without padding: an id of the vocabulary would lose its loss."""

    vocab_size: int
    eod: int
    pad: int = -1

    @property
    def unique_identifiers(self) -> dict[str, int]:
        return {"vocab_size": self.vocab_size, "eod": self.eod}


class WindowSplit:
    """One split of one language modelling task.

    Args:
        sets: Path of each indexed set (without suffix) -> its weight in the blend. With one set, or equal weights 0,
            every window of every set occurs once.
        length: Tokens of a window, for each of which the next one is to be predicted.
        end_token_id: The token behind every document.
        vocab_size: Every id must be below it.
        seed: Of the order of documents.
        limit: Keeps only so many windows; None: all.
        keep_last: Keep the window that is not full (for evaluation); training leaves those tokens out.
        where: The task, for messages.

    Raises:
        DataError: If a set is missing or damaged, or shorter than a window.
    """

    token_type_ids_T = None
    prompt_lengths_N = None
    references = None
    num_truncated = 0

    def __init__(
        self,
        sets: Mapping[str, float],
        *,
        length: int,
        end_token_id: int,
        vocab_size: int,
        seed: int,
        limit: int | None,
        keep_last: bool,
        where: str,
    ) -> None:
        self._library = megatron_data()
        self._length, self._end, self._where = length, end_token_id, where
        self._vocab_size, self._keep_last = vocab_size, keep_last
        self._indexed = {path: open_set(path) for path in sets}
        self._seed = derive(seed, "documents", where) % 2**32
        for path, indexed in self._indexed.items():
            self._check_ids(path, indexed)
        self.num_tokens = sum(int(indexed.sequence_lengths.sum(dtype=np.int64)) for indexed in self._indexed.values())
        self._dataset, lengths_N = self._blend(sets)
        self.lengths_N = lengths_N[:limit]
        self.num_dropped = len(lengths_N) - len(self.lengths_N)
        self.labels_N: npt.NDArray[np.float32] = np.zeros(len(self.lengths_N), dtype=np.float32)

    def __len__(self) -> int:
        return len(self.lengths_N)

    @property
    def num_tokens_left_out(self) -> int:
        """Tokens at the end of the set that fill no window; of a blend or a limited split they are not counted."""
        if len(self._indexed) > 1 or self.num_dropped:
            return 0
        return self.num_tokens - int(self.lengths_N.sum(dtype=np.int64)) - 1

    def read(self, example: int) -> Window:
        """Returns one window.

        Raises:
            DataError: If an id is outside the vocabulary.
        """
        sample = self._dataset[example]
        length = int(self.lengths_N[example])
        window = pack(sample["tokens"].numpy()[:length], sample["labels"].numpy()[:length], end_token_id=self._end)
        largest = max(int(window.input_ids_S.max()), int(window.labels_S.max()))
        if largest >= self._vocab_size:
            raise self._outside(largest, f"window {example}")
        return window

    def _blend(self, sets: Mapping[str, float]) -> tuple[Any, npt.NDArray[np.int32]]:
        whole = [self._windows(path, None) for path in sets]
        if len(whole) == 1:
            return whole[0]
        weights = list(sets.values())
        if not any(weights):
            counts = [len(lengths) for _, lengths in whole]
            blended = self._library.BlendedDataset([dataset for dataset, _ in whole], counts, None, self._config(""))
            parts = whole
        else:
            # An epoch of a blend has as many windows as the sets have together.
            size = sum(len(lengths) for _, lengths in whole)
            shares = [weight / sum(weights) for weight in weights]
            parts = [
                self._windows(path, int(np.ceil(np.ceil(share * size) * (1 + _SURPLUS))))
                for path, share in zip(sets, shares, strict=True)
            ]
            blended = self._library.BlendedDataset(
                [dataset for dataset, _ in parts], [float(share) for share in shares], size, self._config("")
            )
        lengths_N = np.zeros(len(blended), dtype=np.int32)
        for index, (_, lengths) in enumerate(parts):
            chosen = blended.dataset_index == index
            lengths_N[chosen] = lengths[blended.dataset_sample_index[chosen]]
        return blended, lengths_N

    def _windows(self, path: str, count: int | None) -> tuple[Any, npt.NDArray[np.int32]]:
        indexed = self._indexed[path]
        num_tokens = int(indexed.sequence_lengths.sum(dtype=np.int64))
        if num_tokens < (2 if self._keep_last else self._length + 1):
            raise DataError(
                f"{self._where}: the indexed set {path} is shorter than a window",
                got=f"{num_tokens} tokens",
                expected=f"at least {self._length + 1}: data.max_length={self._length} and the token behind it",
                remedy="shorten data.max_length, or add text",
            )
        dataset = self._library.GPTDataset(
            indexed,
            path,
            np.arange(len(indexed), dtype=np.int32),
            count,
            self._library.Split.valid if self._keep_last else self._library.Split.train,
            self._config(path),
        )
        lengths = np.full(len(dataset), self._length, dtype=np.int32)
        if self._keep_last and count is None:
            last = num_tokens - 1 - (len(dataset) - 1) * self._length
            lengths[np.asarray(dataset.shuffle_index) == len(dataset) - 1] = last
        return dataset, lengths

    def _config(self, path: str) -> Any:
        return self._library.GPTDatasetConfig(
            random_seed=self._seed,
            sequence_length=self._length,
            blend=([path], None),
            split="1",
            path_to_cache="",  # in memory; None would write beside the data
            tokenizer=_Vocabulary(self._vocab_size, self._end),
            # Computed for whole windows at once in packing.py.
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
            create_attention_mask=False,
            drop_last_partial_validation_sequence=not self._keep_last,
        )

    def _check_ids(self, path: str, indexed: Any) -> None:
        """The first tokens tell another vocabulary at once; the rest is checked when it is read."""
        largest = int(indexed[0].max(initial=0)) if len(indexed) else 0
        if largest >= self._vocab_size:
            raise self._outside(largest, f"{path}, its first document")

    def _outside(self, token_id: int, place: str) -> DataError:
        return DataError(
            f"{self._where}: a token is outside the vocabulary ({place})",
            got=f"id {token_id}",
            expected=f"ids below {self._vocab_size}, the size of the run's tokenizer",
            remedy="set data.tokenizer to the tokenizer that made the set",
        )
