"""Comparisons of several runs: arms, seeds, paired intervals (``tools/experiments.py``).

``study`` says what is compared, ``jobs`` which runs that takes, ``launch`` trains one of them as a user would,
``ledger`` remembers those that have ended, ``intervals`` compares arms seed by seed, ``table`` and ``picture`` show it.
"""
