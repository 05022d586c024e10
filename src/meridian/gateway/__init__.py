"""The gateway between query processors and the data plane (docs/protocol.md)."""
