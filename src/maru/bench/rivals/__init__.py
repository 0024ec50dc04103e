"""The pool beside what one would use instead: `python -m maru.bench rivals`.

Every store, ours too, is measured in a process of its own, through one contract and by the same sampling code; the
parent asks for one sample at a time, in turn. docs/benchmarks.md says what each store is and how it is configured.

    contract          what a store has to do to take part
    roster            who takes part, and where each lives
    pool_store        ours
    server_store      the usual architecture: a metadata server over a shared file
    metadata_server   that server
    lmdb_store        LMDB
    files_store       plain files in shared memory
    redis_store       Redis
    ray_store         Ray's object store
    nixl_store        NIXL, memory to memory
    nixl_server       the process that owns its memory
    mooncake_store    Mooncake Store, in its two deployments
    work              what a store's process does when it is asked
    child             that process
    crew              the parent's side of it
    figures           which figures there are, and their rows
    install           the folders of those stores that need one
    run               the command line
"""
