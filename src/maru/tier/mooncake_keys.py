"""All keys of a Mooncake store, as its master tells them on the port of its figures.

Its client has no way to ask what there is; the master's HTTP side has one, for everything at once, a key a line.
"""

from __future__ import annotations

import http.client

_LINE_BYTES_MAX = 4096


class AllKeys:
    """One answer, read as it comes. Blocks. For one thread at a time."""

    def __init__(self, host: str, port: int, timeout_s: float) -> None:
        self._connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
        self._answer: http.client.HTTPResponse | None = None

    def next(self) -> str | None:
        """The next key; None after the last. Raises OSError, HTTPException."""
        if self._answer is None:
            self._connection.request("GET", "/get_all_keys")
            self._answer = self._connection.getresponse()
            if self._answer.status != http.client.OK:
                raise http.client.HTTPException(f"the answer is {self._answer.status} {self._answer.reason}")
        line = self._answer.readline(_LINE_BYTES_MAX)
        return line.rstrip(b"\r\n").decode("ascii", "replace") if line else None

    def close(self) -> None:
        if self._answer is not None:
            self._answer.close()
        self._connection.close()
