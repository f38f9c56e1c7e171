"""Figures of the code and the documents: what makes a house hard to read, counted.

``python -m tests.support.house [folder]`` prints what is over a limit, file by file.
``tests/test_house.py`` keeps the limits.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple, TypeGuard

ROOT: Final = Path(__file__).resolve().parents[2]

#: Parameters of a constructor, its object apart. A dataclass, which lists settings, has none.
PARAMETERS: Final = 7
#: Lines of a function, its docstring apart.
LINES: Final = 40
#: Attributes of a class; one with more says beside them why (``# 17 attributes: ...``).
ATTRIBUTES: Final = 14

#: Words and turns that make a reader stop: archaic, or saying in a roundabout way what is plain.
ODD: Final = (
    r"whom",
    r"who(?:m)?ever",
    r"nobody",
    r"somebody",
    r"lest",
    r"anew",
    r"besides?",
    r"of late",
    r"at the (?:most|least)",
    r"so many",
    r"(?:is|was|are|be|can|could|been) (?:be )?had",
    r"be (?:it|they|its)",
    r"all the same",
    r"in vain",
    r"no (?:longer|more)",
    r"any more",
    r"meanwhile",
    r"(?:is )?good for",
    r"is good",
    r"good until",
    r"the same, but",
    r"further",
    r"whence|thereby|therein|wherein",
    r"one's",
    r"as (?:it|one) (?:is|was)",
    r"(?:is|are) to",
)
_ODD: Final = re.compile(rf"\b(?:{'|'.join(ODD)})\b", re.I)
_WORD: Final = re.compile(r"[A-Za-z']+")
_REASON: Final = re.compile(r"# (\d+) attributes: \S")

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Found(NamedTuple):
    """Something over a limit.

    :ivar where: the file, relative to the checkout
    :ivar what: what it is, in words
    """

    where: str
    what: str


class Module(NamedTuple):
    """One file of Python."""

    where: str
    source: str
    tree: ast.Module

    @property
    def classes(self) -> Iterator[ast.ClassDef]:
        """Its classes, also those in others."""
        return (node for node in ast.walk(self.tree) if isinstance(node, ast.ClassDef))

    @property
    def functions(self) -> Iterator[Function]:
        """Its functions and methods."""
        return (node for node in ast.walk(self.tree) if isinstance(node, Function))


def modules(folder: str = "broker", root: Path = ROOT) -> list[Module]:
    """The modules below a folder of the checkout."""
    found = []
    for path in sorted((root / folder).rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        found.append(Module(str(path.relative_to(root)), source, ast.parse(source)))
    return found


def _methods(node: ast.ClassDef) -> Iterator[Function]:
    return (part for part in node.body if isinstance(part, Function))


def _constructor(node: ast.ClassDef) -> Function | None:
    return next((method for method in _methods(node) if method.name == "__init__"), None)


def _parameters(function: Function) -> list[ast.arg]:
    arguments = function.args
    return [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs][1:]


def wide_constructors(sources: Sequence[Module]) -> list[Found]:
    """Constructors with more than ``PARAMETERS``."""
    return [
        Found(module.where, f"{node.name} takes {len(_parameters(made))} parameters")
        for module in sources
        for node in module.classes
        if (made := _constructor(node)) is not None and len(_parameters(made)) > PARAMETERS
    ]


def long_functions(sources: Sequence[Module]) -> list[Found]:
    """Functions with more than ``LINES``, docstrings apart."""
    found = []
    for module in sources:
        for function in module.functions:
            length = (function.end_lineno or 0) - function.lineno + 1
            if ast.get_docstring(function, clean=False) is not None:
                first = function.body[0]
                length -= (first.end_lineno or 0) - first.lineno + 1
            if length > LINES:
                found.append(Found(module.where, f"{function.name} has {length} lines"))
    return found


def _kept(node: ast.ClassDef) -> dict[str, str]:
    """What a class keeps of its constructor's parameters: attribute to parameter."""
    made = _constructor(node)
    if made is None:
        return {}
    names = {argument.arg for argument in _parameters(made)}
    kept = {}
    for step in ast.walk(made):
        if not isinstance(step, ast.Assign | ast.AnnAssign) or step.value is None:
            continue
        targets = step.targets if isinstance(step, ast.Assign) else [step.target]
        for target in targets:
            pairs = [(target, step.value)]
            if isinstance(target, ast.Tuple) and isinstance(step.value, ast.Tuple):
                pairs = list(zip(target.elts, step.value.elts, strict=True))
            for to, value in pairs:
                if isinstance(value, ast.Name) and value.id in names and _is_own(to):
                    kept[to.attr] = value.id
    return kept


def _is_own(node: ast.expr) -> TypeGuard[ast.Attribute]:
    return (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    )


def callbacks(sources: Sequence[Module]) -> list[Found]:
    """Parameters of constructors that are kept and called later: loose callables."""
    found = []
    for module in sources:
        for node in module.classes:
            kept = _kept(node)
            called = {
                kept[call.func.attr]
                for call in ast.walk(node)
                if isinstance(call, ast.Call)
                and isinstance(call.func, ast.Attribute)
                and _is_own(call.func)
                and call.func.attr in kept
            }
            found += [
                Found(module.where, f"{node.name} calls what it was given as {name}")
                for name in sorted(called)
            ]
    return found


def twice_named(sources: Sequence[Module]) -> list[Found]:
    """Names that several classes have."""
    places = defaultdict(list)
    for module in sources:
        for node in module.classes:
            places[node.name].append(module.where)
    return [
        Found(where, f"{name} is the name of {len(found)} classes")
        for name, found in sorted(places.items())
        if len(found) > 1
        for where in found
    ]


def _attributes(node: ast.ClassDef) -> set[str]:
    return {
        target.attr
        for method in _methods(node)
        for target in ast.walk(method)
        if isinstance(target, ast.Attribute)
        and isinstance(target.ctx, ast.Store)
        and _is_own(target)
    }


def crowded_classes(sources: Sequence[Module]) -> list[Found]:
    """Classes with more than ``ATTRIBUTES`` that do not say why."""
    found = []
    for module in sources:
        lines = module.source.splitlines()
        for node in module.classes:
            count = len(_attributes(node))
            if count <= ATTRIBUTES:
                continue
            text = "\n".join(lines[node.lineno - 1 : node.end_lineno])
            reason = _REASON.search(text)
            if reason is None:
                found.append(
                    Found(module.where, f"{node.name} has {count} attributes, and no reason")
                )
            elif int(reason[1]) != count:
                why = f"{node.name} has {count} attributes; its reason says {reason[1]}"
                found.append(Found(module.where, why))
    return found


def unsure_identifiers(sources: Sequence[Module]) -> list[Found]:
    """Places that ask whether a connection that has logged in has an identifier."""
    return [
        Found(module.where, line.strip())
        for module in sources
        for line in module.source.splitlines()
        if 'identifier or ""' in line
    ]


def prose_of(module: Module) -> str:
    """The comments and docstrings of a module."""
    texts = [
        text
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Module | ast.ClassDef | Function)
        and (text := ast.get_docstring(node)) is not None
    ]
    texts += [
        token.string.lstrip("#: ")
        for token in tokenize.generate_tokens(io.StringIO(module.source).readline)
        if token.type == tokenize.COMMENT
    ]
    return "\n".join(texts)


def pages(root: Path = ROOT) -> list[tuple[str, str]]:
    """The documents, each with its prose: without what is quoted or to be typed."""
    paths = sorted([*root.glob("*.md"), *root.glob("docs/*.md"), root / "benchmarks/README.md"])
    return [
        (
            str(path.relative_to(root)),
            re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.S),
        )
        for path in paths
    ]


def odd_words(texts: Sequence[tuple[str, str]]) -> tuple[list[Found], float]:
    """The odd words of some texts, and how many of a thousand words they are."""
    found = [
        Found(where, match[0].lower()) for where, text in texts for match in _ODD.finditer(text)
    ]
    total = sum(len(_WORD.findall(text)) for _, text in texts)
    return found, 1000 * len(found) / max(1, total)


def main(folder: str = "broker") -> None:
    """Print what is over a limit below a folder."""
    sources = modules(folder)
    words, rate = odd_words([(module.where, prose_of(module)) for module in sources])
    of_docs, rate_of_docs = odd_words(pages())
    loose = callbacks(sources)
    classes = sum(1 for module in sources for _ in module.classes)
    checks = {
        "constructors": wide_constructors(sources),
        "functions": long_functions(sources),
        f"callbacks, {100 * len(loose) / max(1, classes):.1f} a hundred classes": loose,
        "names of classes": twice_named(sources),
        "attributes": crowded_classes(sources),
        "identifiers": unsure_identifiers(sources),
    }
    for what, found in checks.items():
        print(f"{what}: {len(found)}")
        for one in found:
            print(f"  {one.where}: {one.what}")
    for what, found, of_thousand in (
        ("code", words, rate),
        ("documents", of_docs, rate_of_docs),
    ):
        print(f"odd words, {what}: {len(found)}, {of_thousand:.1f} a thousand")
        by_file: defaultdict[str, list[str]] = defaultdict(list)
        for one in found:
            by_file[one.where].append(one.what)
        for where, which in sorted(by_file.items(), key=lambda item: -len(item[1])):
            print(f"  {where}: {len(which)}: {', '.join(which[:12])}")


if __name__ == "__main__":
    main(*sys.argv[1:])
