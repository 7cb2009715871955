"""From a recipe and a place to run it to the command that does: ``tools/launch.py``.

``places`` say where, ``command`` spells what is run there, ``checks`` refuse what cannot work, ``supervise`` starts it,
waits, and starts it again from the last checkpoint.
"""
