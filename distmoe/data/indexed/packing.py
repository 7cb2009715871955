"""What a window of packed documents says about documents: where each begins, and what is to be predicted.

Shape letters: S positions of one window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from distmoe.data.batch import NO_LOSS

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Window:
    """Tokens of several documents, one after another; the first and the last may be cut.

    Attributes:
        input_ids_S: Token ids, int64.
        labels_S: The token to be predicted from each position; ``NO_LOSS`` at end tokens, behind which another document
            begins.
        position_ids_S: Position of each token in its document, as far as it stands in the window.
        segment_ids_S: Number of the document in the window, from 0.
    """

    input_ids_S: Ids
    labels_S: Ids
    position_ids_S: Ids
    segment_ids_S: Ids

    def __len__(self) -> int:
        return len(self.input_ids_S)


def pack(input_ids_S: Ids, next_ids_S: Ids, *, end_token_id: int) -> Window:
    """Returns the window of consecutive tokens, and of the tokens behind each of them."""
    is_end_S = input_ids_S == end_token_id
    # The end token belongs to the document that it ends.
    segment_ids_S = np.concatenate([[0], np.cumsum(is_end_S[:-1])]).astype(np.int64)
    places_S = np.arange(len(input_ids_S))
    starts_S = np.concatenate([[0], np.flatnonzero(is_end_S[:-1]) + 1])[segment_ids_S]
    return Window(input_ids_S, np.where(is_end_S, NO_LOSS, next_ids_S), places_S - starts_S, segment_ids_S)
