"""`maru check`: an independent reader of the pool's byte layout, which shares no code with the core.

Holds what a second pair of eyes needs: layout (the format as data), files (reading without being harmed), geometry
(where what lies), tables (the index as sequences), slots, extents and holders (the rules), looks (which findings
last), xxh3 and show. It writes nothing, waits for nobody and trusts nothing that it reads. It imports neither the
core nor the pool above it, so that a mistake there is not made here as well.
"""

from maru.check.finding import Finding, Report, Severity
from maru.check.looks import check_pool

__all__ = ["Finding", "Report", "Severity", "check_pool"]
