"""Background jobs: who runs their steps, how large, and how fast (design section 9)."""
