"""LMCache's whole engine as a process on another host: reads what to do from its input, a JSON line each."""

from __future__ import annotations

import json
import sys

from engine import EngineProcess


def main() -> None:
    engine: EngineProcess | None = None
    for line in sys.stdin:
        arguments = json.loads(line)
        call = arguments.pop("call")
        try:
            if call == "open":
                engine, answer = EngineProcess(**arguments), True
            else:
                answer = getattr(engine, call)(**arguments)
        except BaseException as error:  # The test must hear of anything.
            print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=sys.__stdout__, flush=True)
        else:
            print(json.dumps({"answer": answer}), file=sys.__stdout__, flush=True)


if __name__ == "__main__":
    sys.stdout = sys.stderr  # What LMCache says is not for the test.
    main()
