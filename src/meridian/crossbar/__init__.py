"""Merge of the journals by tau (see README.md)."""
