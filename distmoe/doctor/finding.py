"""What a check found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report.

    Attributes:
        name: What was looked at.
        verdict: ``problem``: a run would fail; ``warning``: it would be slow, or may fail.
        detail: What was seen.
        remedy: What to do; empty when ok.
    """

    name: str
    verdict: Verdict
    detail: str
    remedy: str = ""

    def lines(self) -> list[str]:
        first = f"{self.verdict:8} {self.name}: {self.detail}"
        return [first] if not self.remedy else [first, f"{'':8} remedy: {self.remedy}"]


def report(findings: Sequence[Finding]) -> list[str]:
    """All findings and the verdict on the whole."""
    problems = sum(finding.verdict == "problem" for finding in findings)
    warnings = sum(finding.verdict == "warning" for finding in findings)
    healthy = "ready" if not problems else "not ready"
    lines = [line for finding in findings for line in finding.lines()]
    return [*lines, f"verdict: {healthy} ({problems} problems, {warnings} warnings)"]
