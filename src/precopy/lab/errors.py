"""What can go wrong in the lab."""


class LabError(Exception):
    """One line: what was wrong, and what to do."""
