"""Which part of broker may import which: read from the source, and tried in a fresh interpreter."""

import ast
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Layer -> the layers that it may import besides itself.
BELOW: dict[str, frozenset[str]] = {
    "broker": frozenset(),
    "broker.wire": frozenset(),
    "broker.tables": frozenset(),
    "broker.interfaces": frozenset({"broker.wire", "broker.tables"}),
}
BELOW["broker.authority"] = frozenset({"broker.wire"})
BELOW["broker.arguments"] = frozenset()
BELOW["broker.ca_cli"] = frozenset({"broker.authority", "broker.wire"})
BELOW["broker.credentials"] = frozenset({"broker.authority", "broker.terminal", "broker.wire"})
BELOW["broker.store"] = frozenset({"broker.tables", "broker.interfaces"})
for role in ("broker.mediator", "broker.resolver", "broker.terminal"):
    BELOW[role] = frozenset({"broker.wire", "broker.tables", "broker.store", "broker.interfaces"})
BELOW["broker.nat"] = frozenset()
BELOW["broker.terminal"] |= {"broker.nat"}

# These put the others together and may import everything.
ON_TOP = frozenset(
    {
        "broker.service",
        "broker.options",
        "broker.config",
        "broker.admin_cli",
        "broker.cli",
        "broker.__main__",
    }
)

# These decide and never wait: no Twisted, neither in them nor in what they import.
PURE = ("broker.tables", "broker.wire.grammar", "broker.wire.message", "broker.wire.decoder")

# These run as commands and may load the reactor.
COMMANDS = ("broker.cli", "broker.__main__")

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
        if layer in ON_TOP:
            continue
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


class LayersTests:
    """The modules of broker keep the directions that the architecture prescribes."""

    def test_directions(self) -> None:
        """No module imports from a layer above or beside its own."""
        assert wrong_directions(read_imports(ROOT)) == []

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
            "broker.wire.stream": ["broker.wire.decoder", "twisted.internet.protocol"],
            "broker.store.sqlite": ["broker.tables.permits", "broker.interfaces", "sqlite3"],
            "broker.mediator.call": ["broker.wire", "broker.tables", "broker.store", "brokerage"],
            "broker.service.mediator": ["broker.mediator", "broker.resolver"],
            "broker.cli": ["broker.terminal", "broker"],
        }
        assert wrong_directions(imports) == []
        assert impurities(imports) == []

    def test_bad_map(self) -> None:
        """Imports upwards and sideways, and modules without a layer, are each reported."""
        imports = {
            "broker.helpers": [],
            "broker.mediator.call": ["broker.resolver.local", "broker.wire.message"],
            "broker.store.sqlite": ["broker.wire.message"],
            "broker.tables.permits": ["broker.wire.grammar"],
            "broker.wire.message": ["broker", "broker.tables"],
        }
        assert wrong_directions(imports) == [
            "broker.helpers belongs to no layer",
            "broker.mediator.call imports broker.resolver.local",
            "broker.store.sqlite imports broker.wire.message",
            "broker.tables.permits imports broker.wire.grammar",
            "broker.wire.message imports broker",
            "broker.wire.message imports broker.tables",
        ]

    def test_impure_map(self) -> None:
        """Twisted is noticed in a pure module, and behind what it imports, also in a circle."""
        imports = {
            "broker.tables.grants": ["twisted.python.log"],
            "broker.wire.decoder": ["broker.wire.errors"],
            "broker.wire.errors": ["broker.wire.decoder", "twisted"],
            "broker.wire.stream": ["twisted.internet"],
        }
        assert impurities(imports) == [
            "broker.tables.grants imports twisted.python.log",
            "broker.wire.decoder imports broker.wire.errors imports twisted",
        ]

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
