"""What conditional modules know about the rows of a batch.

Shape letters: B sequences, T tasks, k width of a task embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """The tasks of a batch's rows, made once per forward and handed to every conditional module.

    A module generates its numbers for all tasks and then gathers those of the rows. So rows of a task get the same
    numbers to the bit, whatever else is in the batch: a matmul over rows would round by their place and number.

    Attributes:
        task_ids_B: Task of each row, int64.
        z_Tk: Embeddings of all tasks as the modules inside layers read them; None if there are none (``table``).
        input_z_Tk: The same as the alignment below the layers reads them. Other values in mode ``repo`` only, where
            one projection, shared by all layers, stands between the two.
    """

    task_ids_B: Tensor
    z_Tk: Tensor | None
    input_z_Tk: Tensor | None
