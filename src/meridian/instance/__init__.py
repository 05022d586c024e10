"""The instance manager: one PostgreSQL postmaster with Meridian's extension."""
