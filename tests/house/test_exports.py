"""What `import maru` gives, what it must not load, and that the tree of errors is the one that is drawn."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from types import ModuleType

import pytest

import maru
from maru import errors

HEAVY = (
    "torch", "transformers", "numpy", "typer", "rich", "httpx", "requests",
    "starlette", "uvicorn", "prometheus_client", "msgspec", "zmq", "cryptography", "textual",
)  # fmt: skip
_NODE = re.compile(r"(?P<indent>[ │├└─]*)(?P<name>[A-Z]\w+)(?: \((?P<also>\w+)\))?(?: {2}|$)")


def drawn_tree() -> list[tuple[str, str, str | None]]:
    """(class, its parent, the built-in it also is) of each line of the tree at the top of maru.errors."""
    nodes, above = [], {}
    for line in (errors.__doc__ or "").splitlines():
        node = _NODE.match(line)
        if not node or not node["indent"]:
            continue
        depth = len(node["indent"]) // 4
        above[depth] = node["name"]
        nodes.append((node["name"], above.get(depth - 1, "Exception"), node["also"]))
    return nodes


def test_all_is_what_is_public() -> None:
    public = {
        name for name, value in vars(maru).items() if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert set(maru.__all__) == public | {"__version__"}


@pytest.mark.parametrize("name", [name for name in maru.__all__ if not name.startswith("_")])
def test_a_public_name_says_what_it_is(name: str) -> None:
    assert inspect.getdoc(getattr(maru, name))


def test_importing_maru_loads_nothing_heavy() -> None:
    program = f"import sys, maru; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_command_line_loads_no_tensors() -> None:
    tensors = ("torch", "transformers", "numpy")
    program = f"import sys, maru.cli; print([name for name in {tensors!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_command_line_loads_no_server_and_no_screen() -> None:
    servers = ("starlette", "uvicorn", "prometheus_client", "msgspec", "zmq", "cryptography", "textual")
    program = f"import sys, maru.cli, maru.top_command; print([name for name in {servers!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_tree_of_errors_names_each_class_once_and_no_other() -> None:
    defined = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, BaseException) and value.__module__ == errors.__name__
    }
    assert sorted(name for name, _, _ in drawn_tree()) == sorted(defined)


@pytest.mark.parametrize(("name", "parent", "also"), drawn_tree(), ids=lambda value: str(value))
def test_an_error_stands_where_the_tree_shows_it(name: str, parent: str, also: str | None) -> None:
    bases = {base.__name__ for base in getattr(errors, name).__bases__}
    assert bases == {parent, also} - {None}


@pytest.mark.parametrize("name", [name for name, _, _ in drawn_tree()])
def test_an_error_says_what_it_means(name: str) -> None:
    assert vars(getattr(errors, name))["__doc__"]
