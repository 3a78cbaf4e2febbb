"""The formats that are dissected, a module each, which registers itself."""
