"""Timelines of migrations."""
