"""`maru serve`: the pool of this host for those who cannot share its memory.

server      sockets: frames in, frames out
control     what a request means: sessions, and what they hold in the pool
sessions    what one client holds, and until when
facts       what the daemon tells people, Prometheus and routers

An ordinary process attached to the pool. It may be killed at any moment: the pool stays, local processes do not notice,
and what other hosts hold stays theirs until their leases end.
"""
