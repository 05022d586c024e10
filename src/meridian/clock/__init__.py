"""Time: tau, intervals with error bounds, the machine's clock (design section 4)."""
