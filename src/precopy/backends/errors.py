"""Errors of device names."""


class DeviceNameError(ValueError):
    """A name that no backend understands; the text says what is wrong with it."""
