"""The benchmark of the pool: `python -m maru.bench`, or `make bench`.

Each figure is measured through the Python face, on a real pool in shared memory, side by side with what it is
compared with. Needs numpy, which the `bench` extra installs.

    measure             takes samples of several contestants in turn, and holds the rows that come out
    ground              what the figures stand on: sizes that fit this machine, pools that vanish, rotating buffers
    pool_figures        the groups of rows, and those that take microseconds
    bandwidth_figures   the rows that move bytes: put, cold put, verified reads
    newcomer            a process that has just started, and the rows about it
    machine             the facts that a figure means nothing without
    report              the table, the progress bar and the JSON file
    rivals              the pool beside other stores, each in processes of its own: `python -m maru.bench rivals`
    engines             whole serving engines: vLLM with LMCache, way by way: `python -m maru.bench lmcache`; and what
                        LMCache copies into stores and out: `python -m maru.bench lmcache-copies`
"""
