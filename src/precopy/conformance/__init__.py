"""Holds any device to the VFIO migration uAPI: requirement by requirement, on any backend.

``requirements``
    what is asked for, R1 to R94, and who says so
``check``
    what a check is, and what it has to work with
``checks``
    the checks, one module a topic
``raw``
    what each backend has below the contract: calls that may be wrong, registers, work
``runner``
    runs checks, each on a fresh device, with a watchdog
``outcome``
    verdicts, and the exit status
``known``
    failures that are expected, from a file
``report``
    a run, told as a table, KTAP, JUnit or JSON
``matrix``
    the suite on all devices and kernels that can be had
"""
