"""Differential tests: the same program against Meridian and stock PostgreSQL."""
