"""What a check comes back with, and how it is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from bigjax.core.errors import said


@dataclass(frozen=True)
class Finding:
    """One line of the table.

    status: "ok"; "note": worth knowing, numbers are right all the same; "wrong": exit code 1.
    remedy: what to do about it.
    """

    check: str
    status: Literal["ok", "note", "wrong"]
    detail: str
    remedy: str = ""


Check = Callable[[], Iterator[Finding]]


def run(checks: Sequence[Check]) -> Iterator[Finding]:
    """The findings of all checks. One that raises is a finding itself and ends no other."""
    for check in checks:
        try:
            yield from check()
        except Exception as error:
            yield Finding(check.__name__, "wrong", said(error)[:200])


def line(finding: Finding) -> str:
    """The finding as a line of the table for people."""
    remedy = f"; {finding.remedy}" if finding.remedy else ""
    return f"{finding.status:5}  {finding.check:34}  {finding.detail}{remedy}"


def verdict(findings: Sequence[Finding]) -> str:
    """One line about all of them."""
    wrong = [finding for finding in findings if finding.status == "wrong"]
    if not wrong:
        return f"{len(findings)} checks: nothing is wrong"
    return f"{len(findings)} checks, {len(wrong)} wrong: " + "; ".join(
        f"{finding.check} ({finding.detail})" for finding in wrong
    )
