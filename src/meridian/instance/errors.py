"""Errors a person has to act on: what happened, why, and what to do."""

from __future__ import annotations


class SetupError(Exception):
    """The machine or the arguments do not allow the next step.

    `hint` says what to do about it; it may be empty.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nHint: {self.hint}" if self.hint else self.message
