"""`maru serve`: the pool of this host for those who cannot share its memory.

server      sockets: frames in, frames out
control     what a request means: sessions, and what they hold in the pool
sessions    what one client holds, and until when
facts       what the daemon tells people and Prometheus
kv_events   changes of a pool in the words that routers read; kv_publisher sends them

An ordinary process attached to the pool. It may be killed at any moment: the pool stays, local processes do not notice,
and what other hosts hold stays theirs until their leases end.
"""
