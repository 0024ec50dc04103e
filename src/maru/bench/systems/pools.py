"""The pools that deployments make for themselves."""

from __future__ import annotations

import itertools
import os

from maru.bench.systems.contract import Job

_numbers = itertools.count()


def pool_options(job: Job) -> str:
    """What a pool's URL says beyond its size: medium and options of the job."""
    place = f"data={job.pool_place}" if job.pool_place else ""
    return "&".join(part for part in (place, job.pool_options) if part)


def pool_url(job: Job) -> str:
    """The address of a pool that does not exist yet: of the job's capacity, medium and options."""
    options = "&".join(part for part in (f"size={job.capacity_bytes}", pool_options(job)) if part)
    return f"maru:///bench-{os.getpid()}-{next(_numbers)}?{options}"
