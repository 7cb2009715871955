"""What conditional modules know about the rows of a batch.

Shape letters: B sequences, k width of a task embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """The tasks of a batch's rows, gathered once per forward and handed to every conditional module.

    Attributes:
        task_ids_B: Task of each row, int64; what a ``table`` generator reads.
        z_Bk: Embedding of each row's task, as the modules inside layers read it; None if there is none (``table``).
        input_z_Bk: The same as the alignment below the layers reads it. Another tensor in mode ``repo`` only, where
            one projection, shared by all layers, stands between the two.
    """

    task_ids_B: Tensor
    z_Bk: Tensor | None
    input_z_Bk: Tensor | None
