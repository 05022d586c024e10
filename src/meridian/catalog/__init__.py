"""The catalog as data: deltas merged into an image from which a new instance starts."""
