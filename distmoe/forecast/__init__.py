"""What a run will need and how fast it can be, from configuration and hardware alone: ``tools/plan.py``.

Nothing here starts a rank or allocates a weight. ``workload`` reads a configuration, ``memory``, ``traffic`` and
``step_time`` are pure functions of a workload and a placement, ``arrangement`` ranks what is feasible.
"""
