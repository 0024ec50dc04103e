"""Runs the published solutions of BFCL's multi-turn tasks on their simulators and writes the conversations.

`python -P agentic_tasks.py PACKAGES OUT.jsonl`, where PACKAGES holds bfcl_eval and mpmath, unpacked. Run by its path,
with nothing of ours imported: the simulators see nothing of the process that wanted them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HEAD = "You are an agent that solves the user's task by calling tools. Answer with tool calls, one a line.\n\n# Tools\n"
# Where the documentation of each class of tools lies.
DOCUMENTED_IN = {
    "GorillaFileSystem": "gorilla_file_system",
    "MathAPI": "math_api",
    "MessageAPI": "message_api",
    "TwitterAPI": "posting_api",
    "TicketAPI": "ticket_api",
    "TradingBot": "trading_bot",
    "TravelAPI": "travel_booking",
    "VehicleControlAPI": "vehicle_control",
}


def lines_of(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def said_by(who: str, what: str) -> str:
    return f"<|im_start|>{who}\n{what}<|im_end|>\n"


def conversation(task: dict[str, Any], solution: list[list[str]], data: Path, execute: Any) -> dict[str, Any]:
    """One task: its text, and where each request to the model ends."""
    tools = [
        json.dumps(tool)
        for name in sorted(task["involved_classes"])
        for tool in lines_of(data / "multi_turn_func_doc" / f"{DOCUMENTED_IN[name]}.json")
    ]
    text, ends = said_by("system", HEAD + "\n".join(tools)), []
    for messages, calls in zip(task["question"], solution, strict=True):
        text += "".join(said_by(message["role"], message["content"]) for message in messages)
        for call in calls:
            ends.append(len(text) + len("<|im_start|>assistant\n"))
            told, _ = execute(
                [call], task["initial_config"], task["involved_classes"], "replay", task["id"], long_context=False
            )
            text += said_by("assistant", call) + said_by("tool", told[0])
    return {"id": task["id"], "text": text, "ends": ends}


def main() -> None:
    packages, out = Path(sys.argv[1]), Path(sys.argv[2])
    sys.path.insert(0, str(packages))
    from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_utils import execute_multi_turn_func_call

    data = packages / "bfcl_eval" / "data"
    solutions = {
        one["id"]: one["ground_truth"] for one in lines_of(data / "possible_answer" / "BFCL_v4_multi_turn_base.json")
    }
    with out.open("w", encoding="utf-8") as file:
        for task in lines_of(data / "BFCL_v4_multi_turn_base.json"):
            made = conversation(task, solutions[task["id"]], data, execute_multi_turn_func_call)
            file.write(json.dumps(made) + "\n")


if __name__ == "__main__":
    main()
