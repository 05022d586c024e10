"""The conflict check and the commit decision (see README.md)."""
