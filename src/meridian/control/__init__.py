"""The control plane: placement of shards and owners (design sections 2 and 8, F2)."""
