"""The pools that deployments make for themselves."""

from __future__ import annotations

import itertools
import os

from maru.bench.systems.contract import Job

_numbers = itertools.count()


def pool_url(job: Job) -> str:
    """The address of a pool that does not exist yet: of the job's capacity, medium and options."""
    size = f"size={job.capacity_bytes}"
    place = f"data={job.pool_place}" if job.pool_place else ""
    options = "&".join(part for part in (size, place, job.pool_options) if part)
    return f"maru:///bench-{os.getpid()}-{next(_numbers)}?{options}"
