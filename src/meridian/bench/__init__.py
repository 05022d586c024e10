"""The benchmark harness: the same client work against Meridian and stock PostgreSQL 18."""
