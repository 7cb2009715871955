"""Structural learning as pure functions: which tasks should share which layers, and how their layers become one.

In the order of a structural phase:

1. ``probe``: the fixed set of sequences; ``features``: one vector per sequence and layer.
2. ``cka`` (the paper's measure and training term), ``transfer`` (by labels), ``similarity``: a matrix per frontier;
   ``usage``: for models in which no task has a layer of its own.
3. ``frontier``, ``search``, ``propose``, ``plan``: what to join. ``hosting``: which ranks can compare it. ``carrying``:
   where every tensor comes from.
4. ``alignment``, ``layer_merging``, ``merging``, ``least_squares``, ``pools``, ``moment_merging``: the joined layer and
   its optimizer state. ``distillation``: the paper's way to a joined layer.
5. ``tree``: data for pictures, agreement with planted task groups.

Nothing here talks to other ranks: ``training/structural`` brings together what they have.
"""
