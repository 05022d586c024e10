"""Checks of recorded histories against strong snapshot isolation (docs/history.md)."""
