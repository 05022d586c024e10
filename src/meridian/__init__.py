"""Meridian: a serverless, distributed, PostgreSQL-compatible database."""

__version__ = "0.1.0.dev0"
