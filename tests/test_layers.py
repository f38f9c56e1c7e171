"""Which part of broker may import which: read from the source, and tried in a fresh interpreter."""

import ast
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Layer -> the layers that it may import besides itself. The direction is
# messages, tables -> net, store -> mediator, resolver, terminal -> service -> cli.
BELOW: dict[str, frozenset[str]] = {
    "broker": frozenset(),
    "broker.states": frozenset(),
    "broker.files": frozenset(),
    "broker.messages": frozenset(),
    "broker.tables": frozenset({"broker.states"}),
    "broker.nat": frozenset(),
    "broker.interfaces": frozenset({"broker.messages", "broker.tables"}),
    "broker.net": frozenset({"broker.files", "broker.messages", "broker.states"}),
    "broker.store": frozenset({"broker.files", "broker.tables", "broker.interfaces"}),
    "broker.ca": frozenset({"broker.files", "broker.messages", "broker.net"}),
}
for role in ("broker.mediator", "broker.resolver", "broker.terminal"):
    BELOW[role] = frozenset(
        {"broker.messages", "broker.tables", "broker.net", "broker.interfaces", "broker.states"}
    )
BELOW["broker.terminal"] |= {"broker.files", "broker.nat"}
BELOW["broker.service"] = frozenset(BELOW) | {"broker.service"}
BELOW["broker.cli"] = frozenset(BELOW) | {"broker.cli"}

# These decide and never wait: no Twisted, neither in them nor in what they import.
PURE = ("broker.tables", "broker.messages", "broker.states")

# These run as commands and may load the reactor.
COMMANDS = ("broker.cli.main", "broker.__main__")

IMPORT_ALL = """\
import importlib, sys

for name in sys.argv[1:]:
    importlib.import_module(name)
    if "twisted.internet.reactor" in sys.modules:
        sys.exit(f"{name} loads the reactor")
"""


def is_in(module: str, package: str) -> bool:
    """Whether the module is the package or lies in it."""
    return module == package or module.startswith(package + ".")


def layer_of(module: str) -> str:
    """Return the layer that a module of broker belongs to: the first two parts of its name."""
    return ".".join(module.split(".")[:2])


def find_modules(root: Path) -> dict[str, Path]:
    """Return every module below ``root/broker``, by name."""
    modules = {}
    for path in sorted(root.glob("broker/**/*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def imports_of(source: str, module: str, is_package: bool, modules: Collection[str]) -> set[str]:
    """Return the names of the modules that a source imports, wherever in it the statement stands.

    ``from a import b`` means the module ``a.b`` if there is one among ``modules``, else ``a``.
    """
    parts = module.split(".")
    package = parts if is_package else parts[:-1]

    def names(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield whole if whole in modules else base

    return {name for node in ast.walk(ast.parse(source)) for name in names(node)}


def read_imports(root: Path) -> dict[str, set[str]]:
    """Return what each module below ``root/broker`` imports."""
    modules = find_modules(root)
    return {
        name: imports_of(
            path.read_text(encoding="utf-8"), name, path.name == "__init__.py", modules
        )
        for name, path in modules.items()
    }


def wrong_directions(imports: Mapping[str, Collection[str]]) -> list[str]:
    """Return a line for each module without a layer and each import that its layer may not make."""
    wrong = []
    for module, imported in sorted(imports.items()):
        layer = layer_of(module)
        if layer not in BELOW:
            wrong.append(f"{module} belongs to no layer")
            continue
        allowed = BELOW[layer] | {layer}
        wrong.extend(
            f"{module} imports {name}"
            for name in sorted(imported)
            if is_in(name, "broker") and layer_of(name) not in allowed
        )
    return wrong


def impurities(imports: Mapping[str, Collection[str]]) -> list[str]:
    """Return a line for each way by which a pure module comes to import Twisted."""
    impure = []

    def follow(module: str, way: tuple[str, ...]) -> None:
        for name in sorted(imports.get(module, ())):
            if is_in(name, "twisted"):
                impure.append(" imports ".join((*way, name)))
            elif name not in way:
                follow(name, (*way, name))

    for module in sorted(imports):
        if any(is_in(module, pure) for pure in PURE):
            follow(module, (module,))
    return impure


def circles(imports: Mapping[str, Collection[str]]) -> list[list[str]]:
    """Return the groups of modules that import each other, also for types alone.

    A module belongs to such a group if a way of imports leads from it back to it.
    """
    reached: dict[str, set[str]] = {}
    for module in imports:
        ways, seen = [module], set[str]()
        while ways:
            for name in imports.get(ways.pop(), ()):
                if name not in seen:
                    seen.add(name)
                    ways.append(name)
        reached[module] = seen
    groups = {
        frozenset(other for other in reached[module] if module in reached.get(other, ()))
        for module in imports
        if module in reached[module]
    }
    return sorted(sorted(group) for group in groups)


class LayersTests:
    """The modules of broker keep the directions that the architecture prescribes."""

    def test_directions(self) -> None:
        """No module imports from a layer above or beside its own."""
        assert wrong_directions(read_imports(ROOT)) == []

    def test_no_circles(self) -> None:
        """No module imports itself by way of others, not even for a type."""
        assert circles(read_imports(ROOT)) == []

    def test_purity(self) -> None:
        """The tables, and the reading and writing of messages, do without Twisted."""
        assert impurities(read_imports(ROOT)) == []

    def test_pure_modules_exist(self) -> None:
        """Each name in ``PURE`` is a module's, so that the rule above is about something."""
        assert set(PURE) <= set(find_modules(ROOT))

    def test_no_reactor(self) -> None:
        """Importing any module, the commands' apart, leaves the choice of a reactor open."""
        names = [
            name
            for name in find_modules(ROOT)
            if not any(is_in(name, command) for command in COMMANDS)
        ]
        done = subprocess.run(
            [sys.executable, "-c", IMPORT_ALL, *names],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


class CheckerTests:
    """The checks above do fail when something is wrong."""

    def test_good_map(self) -> None:
        """Imports downwards, within a layer, of others' libraries, and from the top are right."""
        imports = {
            "broker": [],
            "broker.net.connection": ["broker.messages.framing", "twisted.internet.protocol"],
            "broker.store.sqlite": ["broker.tables.permits", "broker.interfaces", "sqlite3"],
            "broker.mediator.call": ["broker.net", "broker.tables", "broker.mediator", "brokerage"],
            "broker.service.mediator": ["broker.mediator", "broker.resolver"],
            "broker.cli.main": ["broker.terminal", "broker"],
        }
        assert wrong_directions(imports) == []
        assert impurities(imports) == []
        assert circles(imports) == []

    def test_bad_map(self) -> None:
        """Imports upwards and sideways, and modules without a layer, are each reported."""
        imports = {
            "broker.helpers": [],
            "broker.mediator.call": ["broker.resolver.locations", "broker.messages.message"],
            "broker.store.sqlite": ["broker.messages.message"],
            "broker.tables.permits": ["broker.messages.grammar"],
            "broker.messages.message": ["broker", "broker.tables"],
            "broker.service.mediator": ["broker.cli.main"],
        }
        assert wrong_directions(imports) == [
            "broker.helpers belongs to no layer",
            "broker.mediator.call imports broker.resolver.locations",
            "broker.messages.message imports broker",
            "broker.messages.message imports broker.tables",
            "broker.service.mediator imports broker.cli.main",
            "broker.store.sqlite imports broker.messages.message",
            "broker.tables.permits imports broker.messages.grammar",
        ]

    def test_impure_map(self) -> None:
        """Twisted is noticed in a pure module, and behind what it imports, also in a circle."""
        imports = {
            "broker.tables.grants": ["twisted.python.log"],
            "broker.messages.framing": ["broker.messages.errors"],
            "broker.messages.errors": ["broker.messages.framing", "twisted"],
            "broker.net.connection": ["twisted.internet"],
        }
        assert impurities(imports) == [
            "broker.messages.errors imports twisted",
            "broker.messages.framing imports broker.messages.errors imports twisted",
            "broker.tables.grants imports twisted.python.log",
        ]

    def test_circles(self) -> None:
        """Two modules that import each other are reported, and who leads to them is not."""
        imports = {
            "broker.net.a": ["broker.net.b"],
            "broker.net.b": ["broker.net.c", "twisted"],
            "broker.net.c": ["broker.net.b", "broker.net.d"],
            "broker.net.d": [],
        }
        assert circles(imports) == [["broker.net.b", "broker.net.c"]]

    def test_every_form_of_import(self) -> None:
        """Absolute and relative imports are understood, also inside functions."""
        source = """
import broker.a.one as one, os.path
from broker.a import two, Thing
from . import three
from .four import Four
from .. import b
from ..b import *
def f():
    from ..b.five import g
"""
        modules = {"broker", "broker.a", "broker.b"} | {
            f"broker.{name}" for name in ("a.one", "a.two", "a.three", "a.four", "b.five")
        }
        found = {
            "os.path",
            *("broker.a", "broker.a.one", "broker.a.two", "broker.a.three", "broker.a.four"),
            *("broker.b", "broker.b.five"),
        }
        assert imports_of(source, "broker.a.module", False, modules) == found
        assert imports_of(source, "broker.a", True, modules) == found
