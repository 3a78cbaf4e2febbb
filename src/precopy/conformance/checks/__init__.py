"""The checks, one module a topic. Importing this registers them all."""
