"""Small facts of a cluster under compare-and-set: identities, epochs, leases (design section 2)."""
