"""The deterministic simulation (see README.md)."""
