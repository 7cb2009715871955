"""Structural learning while training: task phase, similarity, proposal, merge, trial, and again.

``state``: what a checkpoint remembers. ``probe``: the sequences on which task groups are compared. ``similarity`` and
``alignment``: their features, for decisions and as a training term. ``arms``: the runs of a trial. ``trial``: keep or
undo. ``phases``: the order of events.
"""
