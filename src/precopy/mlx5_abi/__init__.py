"""What the mlx5 driver and the adapter's firmware share. No I/O.

``layout``
    the notation for bit layouts
``status``
    command statuses, and the errno that each becomes
``commands``
    opcodes, and the layout of every command's inbox and outbox
``contexts``
    QP, CQ, EQ and MKEY contexts
``capabilities``
    the capability pages of QUERY_HCA_CAP
``wqe``
    work queue entries, completions, events, doorbell records
``records``
    the records of a migration stream
``port``
    how either side reaches the other
"""
