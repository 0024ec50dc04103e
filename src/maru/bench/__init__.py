"""What is measured: `maru bench`, figure by figure, and the commands beneath it (`python -m maru.bench`, `make bench`).

Figures, beside what one would use instead; needs the `bench` extra:

    figures             one module a figure: its question, its measures, how samples are taken
    systems             ways of keeping KV, deployed under an engine; replicas that answer prompts
    loads               what replicas are asked
    settings, session   what a person chose; one run, step after step
    step_log, leftovers what an interrupted run is taken up from; what a killed one left
    usage, energy       CPU seconds, network bytes and joules
    document, results   a run as data, and as files
    drawing             pictures, and the report
    standings, compare  who is best at a place; two runs side by side

The pool, operation by operation, each beside what bounds it; needs numpy:

    measure             takes samples of several contestants in turn, and holds the rows that come out
    ground              what the figures stand on: sizes that fit this machine, pools that vanish, rotating buffers
    pool_figures        the groups of rows, and those that take microseconds
    bandwidth_figures   the rows that move bytes: put, cold put, verified reads
    wire_figures        the rows about a daemon: beside an echo and a bare socket (bare_wire), and of many clients
    daemons             a daemon in a process of its own
    newcomer            a process that has just started, and the rows about it
    ending_figures      how long what was removed or bumped is still found: by others, near pools, places below
    machine             the facts that a figure means nothing without
    report              the table, the progress bar and the JSON file
    rivals              the pool beside other stores, each in processes of its own: `python -m maru.bench rivals`
    hit_rates           traces replayed through a pool smaller than they are, beside simulated policies
    engines             whole serving engines: vLLM with LMCache, way by way: `python -m maru.bench lmcache`; and what
                        LMCache copies into stores and out: `python -m maru.bench lmcache-copies`
"""
