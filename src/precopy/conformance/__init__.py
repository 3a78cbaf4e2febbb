"""Holds any device to the VFIO migration uAPI: requirement by requirement, on any backend.

``check``
    what a check is, and what it has to work with
``checks``
    the checks, one module a topic
"""
