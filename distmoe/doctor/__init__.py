"""Is this machine, are these machines fit for a run? ``tools/doctor.py``: a verdict per check, with the remedy."""
