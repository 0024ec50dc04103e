"""`maru serve`: one process beside the pools, for those who cannot share their memory: other hosts, people, Prometheus.

Holds:   two faces. RPC for other hosts, and the web face (`web` and what it stands on) for people and their programs.
         The web face knows the rest of the daemon only by what `facts` says.
Leaves:  everything that matters to `pool`. When this process dies nothing is lost, and local engines do not notice.
"""
