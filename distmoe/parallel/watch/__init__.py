"""Ends a job whose rank has died, hangs or is cut off: on all nodes, in time, with one message that names the rank.

``whereabouts`` is what a rank says of itself, ``judge`` (pure) decides who is to blame, ``watch`` carries both through
the store that the ranks met at, beside training and without any collective, and ``guardian`` ends a rank that cannot
end itself. :class:`~distmoe.parallel.watch.watch.Watch` is all that a run needs.
"""
