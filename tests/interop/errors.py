"""What can go wrong with a peer."""


class PeerError(Exception):
    """One line: who failed, at what."""
