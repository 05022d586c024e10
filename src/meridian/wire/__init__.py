"""Messages and their encoding: no I/O, no clock. See docs/protocol.md and docs/formats.md."""
