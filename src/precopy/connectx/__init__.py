"""The software ConnectX: an adapter with one PF and its VFs, without the silicon."""
