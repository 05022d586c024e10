"""The journal: the durable order of whole transactions (design section 6)."""
