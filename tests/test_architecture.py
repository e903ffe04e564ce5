"""The plan of the house, held against the source: which way things point, and what is nowhere to be found.

Everything here is read from the source by `ast`; nothing of proxyd is run. Each rule is a function from a module to what it
finds wrong, is asked about the whole package, and is shown once (`test_each_rule_sees_its_violation`) that it can see.
An exception to a rule is a line in one of the tables here, with its reason; one that is no longer needed fails.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PACKAGE = Path(__file__).parent.parent / "proxyd"
GENERATED = "wire/_pb/"

MAX_LINES = 440
"""About 400, says the house: a tenth more is still about."""
MAX_FUNCTION = 60
MAX_PARAMETERS = 5

GROUND = frozenset({"", "config", "model", "errors", "clock", "metrics", "series", "log", "line_writer"})
PLAIN = frozenset({"", "config", "model", "errors"})
"""What pure rooms stand on: the ground without clock, log and metrics."""
MAY_IMPORT = {
    "": frozenset(),
    "errors": frozenset(),
    "clock": frozenset(),
    "model": frozenset(),
    "config": frozenset({"", "config", "model", "errors"}),
    "series": frozenset(),
    "metrics": GROUND,
    "line_writer": frozenset(),
    "log": GROUND,
    "rules": PLAIN | {"rules"},
    "wire": PLAIN | {"wire"},
    "store": GROUND | {"store"},
    "upstream": GROUND | {"upstream"},
    "flow": GROUND | {"rules", "wire", "store", "upstream", "flow"},
    "web": GROUND | {"rules", "wire", "store", "upstream", "flow", "web"},
    "daemon": GROUND | {"rules", "wire", "store", "upstream", "flow", "web", "daemon"},
    "cli": GROUND | {"rules", "wire", "store", "upstream", "flow", "web", "daemon", "cli", "client"},
    "__main__": frozenset({"cli"}),
    # The other side of the wire, in other people's programs: nothing of the daemon comes along, nothing here needs it.
    "client": PLAIN | {"wire", "client"},
}
MAY_NAME_FOR_TYPES = {"flow": frozenset({"web"})}
"""flow is handed the client's side and must only know its shape."""

PURE = frozenset({"rules", "wire", "config"})
IMPURE_MODULES = frozenset(
    {"asyncio", "time", "logging", "random", "secrets", "uuid", "threading", "multiprocessing", "subprocess", "signal", "sched"}
)
NETWORK_MODULES = (
    "aiohttp",
    "httptools",
    "socket",
    "socketserver",
    "ssl",
    "http.client",
    "http.server",
    "urllib.request",
    "httpx",
    "requests",
)
NETWORK_ROOMS = frozenset({"web", "upstream", "daemon", "cli", "client", "__main__"})
SQL_MODULES = frozenset({"sqlite3", "aiosqlite", "asyncpg", "psycopg"})
SQL = re.compile(
    r"\s*(SELECT\s.+\sFROM|INSERT\s+(OR\s+\w+\s+)?INTO|UPDATE\s.+\sSET|DELETE\s+FROM|(CREATE|DROP|ALTER)\s+(TABLE|INDEX)|PRAGMA\s)\b",
    re.DOTALL,
)
ENVIRONMENT_ROOMS = frozenset({"daemon", "cli", "__main__"})
ENVIRONMENT = frozenset({"os.environ", "os.environb", "os.getenv", "sys.argv"})
TASK_MAKERS = frozenset({"create_task", "ensure_future", "run_coroutine_threadsafe"})
BLANKET = frozenset({"Exception", "BaseException"})
MUTATORS = frozenset(
    {"append", "add", "update", "setdefault", "pop", "popitem", "clear", "extend", "insert", "remove", "discard", "appendleft"}
)
CONSTANT = re.compile(r"_?[A-Z][A-Z0-9_]*|__\w+__")
TYPE_NAME = re.compile(r"_?[A-Z][A-Za-z0-9]*")
MODULE_CODE = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)

EXCEPTIONS: dict[tuple[str, str], str] = {
    ("parameters", "errors.py: ProxyError.__init__"): "one place to describe a failure; all but two go by name",
    ("parameters", "flow/runtime.py: Door.call"): "the parts of one request, and who takes its answer; `fresh` goes by name",
    ("parameters", "upstream/http.py: HttpUpstream.call"): "as Door.call, which it is",
    ("parameters", "upstream/echo.py: EchoUpstream.call"): "as Door.call, which it is",
    ("parameters", "wire/faults.py: _own"): "what an upstream said, beside what we make of it; for one file",
    ("purity", "wire/tokens.py: imports threading"): "a lock: counting runs on worker threads, and a vocabulary is loaded once",
    ("purity", "rules/pricelist.py: imports threading"): "a lock: the list is read on a worker thread, once",
    ("tasks", "flow/runtime.py: makes tasks"): "the supervisor",
    ("tasks", "store/db.py: makes tasks"): "the one writer; close() waits for it, and its failure is told by it",
    ("blanket", "daemon/run.py: catches everything"): "a chore with a bug is logged and begins anew: the daemon runs for months",
    ("blanket", "flow/handler.py: catches everything"): "a bug of ours is the client's 500, and logged",
    ("blanket", "cli/__init__.py: catches everything"): "commands end with a line on stderr, not with a traceback",
    ("blanket", "store/writer.py: catches everything"): "one bad operation must not fail its whole batch",
    ("blanket", "wire/tokens.py: catches everything"): "a panic in Rust has no class of its own to catch",
    ("blanket", "log.py: catches everything"): "a bad log call, or somebody else's broken __str__, must not break what it tells of",
}
"""(rule, "file: what") → why it may be. As the rule words it, which is without line numbers."""


@dataclass(frozen=True)
class Module:
    path: str
    """Inside the package, with slashes."""
    source: str

    @property
    def room(self) -> str:
        first = self.path.split("/")[0].removesuffix(".py")
        return "" if first == "__init__" else first

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.source, self.path)


@dataclass(frozen=True)
class Import:
    name: str
    for_types: bool

    @property
    def room(self) -> str | None:
        """The room of proxyd that is imported; None for anything else."""
        parts = self.name.split(".")
        if parts[0] != "proxyd":
            return None
        return parts[1] if len(parts) > 1 and parts[1] in MAY_IMPORT else ""


def modules() -> list[Module]:
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        path = file.relative_to(PACKAGE).as_posix()
        if not path.startswith(GENERATED):
            found.append(Module(path, file.read_text("utf-8")))
    return found


def imports(tree: ast.AST, *, for_types: bool = False) -> Iterator[Import]:
    """Every import, wherever it stands; `from proxyd import rules` counts as `proxyd.rules`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, for_types) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (Import(f"{node.module}.{alias.name}", for_types) for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from imports(ast.Module(node.body, []), for_types=True)
            yield from imports(ast.Module(node.orelse, []), for_types=for_types)
        else:
            yield from imports(node, for_types=for_types)


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{prefix}{node.name}"
            if not isinstance(node, ast.ClassDef):
                yield name, node
            yield from functions(node, f"{name}.")
        else:
            yield from functions(node, prefix)


def called(node: ast.AST) -> str:
    """The last name of what is called: `create_task` of `loop.create_task(…)`."""
    if not isinstance(node, ast.Call):
        return ""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def direction(module: Module) -> Iterator[str]:
    """Rooms import only what lies below them; rules, wire, store and upstream never one another."""
    allowed = MAY_IMPORT.get(module.room)
    if allowed is None:
        yield "is in no room of the plan"
        return
    for one in imports(module.tree):
        below = allowed | (MAY_NAME_FOR_TYPES.get(module.room, frozenset()) if one.for_types else frozenset())
        if one.room is not None and one.room not in below:
            yield f"imports {one.room or 'proxyd'}"


def relative(module: Module) -> Iterator[str]:
    """Imports say where they point."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield "imports relatively"


def purity(module: Module) -> Iterator[str]:
    """Neither rules nor wire nor config have async, clock, log or randomness."""
    if module.room not in PURE:
        return
    for one in imports(module.tree):
        if not one.for_types and one.name.split(".")[0] in IMPURE_MODULES:
            yield f"imports {one.name.split('.')[0]}"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith):
            yield "is asynchronous"
        if called(node) in {"now", "utcnow", "today"}:
            yield f"reads the time by {called(node)}"


def deafness(module: Module) -> Iterator[str]:
    """Decisions read and write nothing."""
    if module.room != "rules":
        return
    for one in imports(module.tree):
        if one.name.split(".")[0] in {"os", "pathlib", "io", "sys", "shutil", "tempfile", "zoneinfo"}:
            yield f"imports {one.name.split('.')[0]}"
    yield from (f"calls {called(node)}" for node in ast.walk(module.tree) if called(node) in {"open", "print", "input"})


def sockets(module: Module) -> Iterator[str]:
    """Only web, upstream, the client (and who starts or calls the daemon) touch the network."""
    if module.room in NETWORK_ROOMS:
        return
    for one in imports(module.tree):
        if not one.for_types and any(f"{one.name}.".startswith(f"{name}.") for name in NETWORK_MODULES):
            yield f"imports {one.name}"


def sql(module: Module) -> Iterator[str]:
    """Only store knows SQL."""
    if module.room == "store":
        return
    for one in imports(module.tree):
        if one.name.split(".")[0] in SQL_MODULES:
            yield f"imports {one.name.split('.')[0]}"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and SQL.match(node.value):
            yield "speaks SQL"


def environment(module: Module) -> Iterator[str]:
    """Nothing below daemon reads the environment or the command line."""
    if module.room in ENVIRONMENT_ROOMS:
        return
    for node in ast.walk(module.tree):
        if (isinstance(node, ast.Attribute) and ast.unparse(node) in ENVIRONMENT) or called(node) in {"expanduser", "expandvars"}:
            yield f"uses {ast.unparse(node)}"
    for one in imports(module.tree):
        if one.name in ENVIRONMENT:
            yield f"uses {one.name}"


def statelessness(module: Module) -> Iterator[str]:
    """At module level there are constants and loggers only, and nobody changes them."""
    tree = module.tree
    named: set[str] = set()
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        names = {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
        named |= names
        yield from (f"has {name} at module level" for name in sorted(names) if not _constant(name, node))
        if not targets and not isinstance(node, MODULE_CODE) and not _harmless(node):
            yield f"does something when imported ({type(node).__name__})"
    for name, function in functions(tree):
        own = {argument.arg for argument in ast.walk(function.args) if isinstance(argument, ast.arg)}
        own |= {node.id for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        yield from (f"{name} changes {changed}" for changed in _changes(function) if changed in named - own)
        if any(isinstance(node, ast.Global) for node in ast.walk(function)):
            yield f"{name} has globals"
        if {"cache", "lru_cache"} & {called(one) or ast.unparse(one).split(".")[-1] for one in function.decorator_list}:
            yield f"{name} remembers its results for ever"


def _constant(name: str, node: ast.stmt) -> bool:
    """A constant, a type, a logger, or a function under a name of its own (`decode = Decoder(T).decode`)."""
    value = getattr(node, "value", None)
    logger = called(value) == "getLogger"
    return logger or isinstance(value, ast.Attribute) or CONSTANT.fullmatch(name) is not None or TYPE_NAME.fullmatch(name) is not None


def _harmless(node: ast.stmt) -> bool:
    """A docstring, the types' imports, an optional import."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.unparse(node.test) or "__name__" in ast.unparse(node.test)
    if isinstance(node, ast.Try):
        return all(isinstance(one, ast.Import | ast.ImportFrom) for one in node.body)
    return False


def _changes(function: ast.AST) -> Iterator[str]:
    """Names of which a function changes the value in place."""
    for node in ast.walk(function):
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del) and isinstance(node.value, ast.Name):
            yield node.value.id
        if called(node) in MUTATORS and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
            yield node.func.value.id


def tasks(module: Module) -> Iterator[str]:
    """Background tasks live under one supervisor."""
    if any(called(node) in TASK_MAKERS for node in ast.walk(module.tree)):
        yield "makes tasks"


def blanket(module: Module) -> Iterator[str]:
    """`except Exception` occurs in few files, each for a reason."""
    for node in ast.walk(module.tree):
        everything = isinstance(node, ast.ExceptHandler) and (node.type is None or ast.unparse(node.type) in BLANKET)
        if everything and not isinstance(node.body[-1], ast.Raise):  # one that tidies up lets it go on
            yield "catches everything"


def length(module: Module) -> Iterator[str]:
    """Files have about 400 lines at most."""
    if (lines := module.source.count("\n")) > MAX_LINES:
        yield f"has {lines} lines"


def function_length(module: Module) -> Iterator[str]:
    """Functions have at most 60 lines."""
    for name, node in functions(module.tree):
        if (node.end_lineno or 0) - node.lineno + 1 > MAX_FUNCTION:
            yield f"{name} is too long"


def parameters(module: Module) -> Iterator[str]:
    """Functions have at most five parameters, beside self; then they want a dataclass."""
    for name, node in functions(module.tree):
        arguments = [one.arg for one in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]]
        if len([one for one in arguments if one not in {"self", "cls"}]) > MAX_PARAMETERS:
            yield name


def words(module: Module) -> Iterator[str]:
    """Modules are nouns of the domain."""
    for part in module.path.removesuffix(".py").split("/"):
        if part.strip("_") in {"utils", "util", "helpers", "common", "misc", "base", "core", "manager", "service", "handlers", "types"}:
            yield f"is called {part}"


RULES: dict[str, Callable[[Module], Iterator[str]]] = {
    rule.__name__: rule
    for rule in (
        direction,
        relative,
        purity,
        deafness,
        sockets,
        sql,
        environment,
        statelessness,
        tasks,
        blanket,
        length,
        function_length,
        parameters,
        words,
    )
}


@pytest.mark.parametrize("rule", sorted(RULES))
def test_the_source_keeps_the_rule(rule: str) -> None:
    """Each rule, over the whole package."""
    found = {f"{module.path}: {problem}" for module in modules() for problem in RULES[rule](module)}
    excused = {what for name, what in EXCEPTIONS if name == rule}
    assert "\n".join(sorted(found - excused)) == "", RULES[rule].__doc__
    there = {module.path for module in modules()}
    assert sorted(what for what in excused - found if what.split(": ")[0] in there) == [], "no longer needed in EXCEPTIONS"


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [
        ("direction", "rules/a.py", "from proxyd.wire import body"),
        ("direction", "wire/a.py", "from proxyd import rules"),
        ("direction", "store/a.py", "import proxyd.upstream.pool"),
        ("direction", "upstream/a.py", "def f():\n    from proxyd.store.db import x"),
        ("direction", "rules/a.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from proxyd.store import x"),
        ("direction", "flow/a.py", "from proxyd.web import app"),
        ("direction", "rules/a.py", "from proxyd.clock import Clock"),
        ("direction", "model.py", "from proxyd.config.schema import Kind"),
        ("direction", "flow/a.py", "from proxyd.client import Client"),
        ("direction", "client/a.py", "from proxyd.store import db"),
        ("direction", "extra/a.py", ""),
        ("relative", "rules/a.py", "from . import b"),
        ("purity", "rules/a.py", "import time"),
        ("purity", "wire/a.py", "async def f(): ..."),
        ("purity", "config/a.py", "def f(x):\n    return x.now()"),
        ("purity", "rules/a.py", "from random import Random\n"),
        ("deafness", "rules/a.py", "def f(x):\n    return open(x)"),
        ("deafness", "rules/a.py", "from pathlib import Path"),
        ("sockets", "flow/a.py", "from aiohttp import web"),
        ("sockets", "store/a.py", "import socket"),
        ("sql", "flow/a.py", "import sqlite3"),
        ("sql", "cli/a.py", 'X = "SELECT * FROM usage_events"'),
        ("sql", "web/a.py", 'def f(db):\n    db.execute("PRAGMA user_version")'),
        ("environment", "web/a.py", "import os\ndef f():\n    return os.environ['A']"),
        ("environment", "config/a.py", "from os import getenv"),
        ("statelessness", "flow/a.py", "cache = {}"),
        ("statelessness", "flow/a.py", "print(1)"),
        ("statelessness", "flow/a.py", "for x in (): pass"),
        ("statelessness", "flow/a.py", "SEEN = {}\ndef f(x):\n    SEEN[x] = 1"),
        ("statelessness", "flow/a.py", "SEEN = []\ndef f(x):\n    SEEN.append(x)"),
        ("statelessness", "flow/a.py", "def f():\n    global x\n    x = 1"),
        ("statelessness", "flow/a.py", "@functools.lru_cache(maxsize=None)\ndef f(): ..."),
        ("statelessness", "flow/a.py", "@cache\ndef f(): ..."),
        ("tasks", "web/a.py", "def f():\n    asyncio.create_task(g())"),
        ("blanket", "web/a.py", "def f():\n    try:\n        g()\n    except Exception:\n        pass"),
        ("blanket", "web/a.py", "def f():\n    try:\n        g()\n    except:\n        pass"),
        ("blanket", "web/a.py", "def f():\n    try:\n        g()\n    except BaseException:\n        if x:\n            raise"),
        ("length", "web/a.py", "\n" * (MAX_LINES + 1)),
        ("function_length", "web/a.py", "def f():\n" + "    x = 1\n" * MAX_FUNCTION),
        ("parameters", "web/a.py", "class A:\n    def f(self, a, b, c, *, d, e, g): ..."),
        ("words", "web/utils.py", ""),
    ],
)
def test_each_rule_sees_its_violation(rule: str, path: str, source: str) -> None:
    """A rule that finds nothing anywhere would hold nothing."""
    assert list(RULES[rule](Module(path, source)))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("rules/a.py", "from proxyd.config.schema import Retry\nfrom proxyd.model import Ask\nfrom proxyd.rules.routes import Route"),
        ("flow/a.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from proxyd.web.downstream import Downstream"),
        ("web/a.py", "import logging\nfrom aiohttp import web\nlog = logging.getLogger(__name__)\nT = TypeVar('T')\n_TABLE = {1: 2}"),
        ("web/a.py", "TABLE = {}\ndef f(TABLE):\n    TABLE[1] = 2"),
        ("daemon/a.py", "import os\ndef f():\n    return os.environ"),
        ("wire/a.py", 'X = "UPDATE your client"\nY = "Select a model"'),
        ("web/a.py", "def f():\n    try:\n        g()\n    except BaseException:\n        h()\n        raise"),
        ("wire/a.py", "decode = Decoder(int).decode\ndef f(self):\n    return self.environ"),
        ("metrics.py", "from http import HTTPStatus"),
        ("web/a.py", "def f(self, a, b, c, d, e): ..."),
    ],
)
def test_the_rules_leave_in_peace_what_is_right(path: str, source: str) -> None:
    """A rule that finds something everywhere would be switched off."""
    assert [problem for rule in RULES.values() for problem in rule(Module(path, source))] == []


def test_the_package_is_where_the_test_looks() -> None:
    """All of the above is about something."""
    rooms = {module.room for module in modules()}
    assert {"config", "rules", "wire", "store", "upstream", "flow", "web", "daemon", "cli"} <= rooms


def test_each_room_says_what_is_in_it() -> None:
    """The first page of the house, of each room and of the bench (`__init__.py`) has a line for every file there, and for no other."""
    for room in (PACKAGE, *sorted(path.parent for path in PACKAGE.glob("[a-z]*/__init__.py")), PACKAGE.parent / "bench"):
        page = (room / "__init__.py").read_text("utf-8")
        named = re.findall(r"^(\w+) {2,}\S", ast.get_docstring(ast.parse(page)) or "", re.MULTILINE)
        if room.name == "cli":
            named += re.findall(r'^    "(\w+)": "', page, re.MULTILINE)  # COMMANDS
        there = [file.stem for file in room.glob("[a-z]*.py") if not file.stem.startswith("test_")] + [
            inner.parent.name for inner in room.glob("[a-z]*/__init__.py")
        ]
        assert sorted(named) == sorted(there), room.name


def test_every_exception_says_why_and_names_a_rule() -> None:
    """Exceptions are for reasons."""
    assert all(rule in RULES and len(reason) > 10 for (rule, _), reason in EXCEPTIONS.items())
