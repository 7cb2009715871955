"""One family of exceptions for everything a user can get wrong.

Every message has four parts: what is wrong, what was got, what was expected, and the remedy.
``assert`` is kept for mistakes of distmoe itself.
"""

from __future__ import annotations

from functools import partial


class DistmoeError(Exception):
    """Base of all user-facing errors.

    Args:
        what: One sentence naming the object that is wrong.
        got: The offending value, in the user's own words where possible.
        expected: What would have been accepted, with the number or the list of choices.
        remedy: What the user can do about it, naming the key or the command.
    """

    def __init__(self, what: str, *, got: object, expected: object, remedy: str) -> None:
        self.what, self.got, self.expected, self.remedy = what, got, expected, remedy
        super().__init__(what)

    def __str__(self) -> str:
        return f"{self.what}\n  got:      {self.got}\n  expected: {self.expected}\n  remedy:   {self.remedy}"

    def __reduce__(self) -> tuple[object, ...]:
        """Keeps the four parts when an error crosses a process border, for example from a loader worker."""
        return partial(type(self), got=self.got, expected=self.expected, remedy=self.remedy), (self.what,)


class ConfigError(DistmoeError):
    """A configuration value, or a combination of values, cannot work."""


class DataError(DistmoeError):
    """A data set, an example or a cache is not what it claims to be."""


class ParallelError(DistmoeError):
    """Ranks, process groups or placement do not fit the run."""


class RankError(ParallelError):
    """What one rank may lack while the others have it; met before ranks can agree, it is printed by every such rank."""


class RendezvousError(RankError):
    """The ranks did not meet; nothing is wrong with the run, and another start may succeed."""


class CheckpointError(DistmoeError):
    """A checkpoint or an export is missing, damaged or of another shape."""


class TrainingError(DistmoeError):
    """Training cannot go on, for example because a loss is not finite."""


class RunEnded(Exception):  # noqa: N818, it reports no error of its own
    """Raised on every rank when the job ends because of an error that one rank has already printed.

    Args:
        code: Exit code of the process.
    """

    def __init__(self, code: int) -> None:
        self.code = code
        super().__init__(f"the job ends with code {code}")
