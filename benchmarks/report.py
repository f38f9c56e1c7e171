"""The results as tables for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from math import isnan
from statistics import median

from benchmarks.counting import Result
from benchmarks.meter import Row


def tables(rows: Sequence[Row]) -> str:
    """Both tables: what was measured, and that the load was not the bottleneck.

    Between them is what has to be said of some lines.
    """
    return "\n".join(
        [
            *_lines(_RESULTS, [_result(row) for row in rows]),
            "",
            *_notes(rows),
            "The load beside the servers (medians): how much of the time each had something to do.",
            "The load never sleeps; it was fast enough where it was less busy than the servers.",
            "",
            *_lines(_LOADS, [_load(row) for row in rows if row.results]),
        ]
    )


def as_json(rows: Sequence[Row]) -> list[dict[str, object]]:
    """Everything, each repeat by itself; seconds, and the unit that each row names."""
    return [
        asdict(row) | {"median": median(row.values) if row.values else None, "met": met(row)}
        for row in rows
    ]


def met(row: Row) -> str:
    """Whether the median keeps within the goal, or within what must be; empty without either."""
    if row.must is None or row.goal is None or not row.values:
        return ""
    value = median(row.values)
    if value <= row.goal:
        return "goal"
    return "must" if value <= row.must else "NO"


_RESULTS = (
    "measure",
    "median REF (range)",
    "a second",
    "p50 ms",
    "p99 ms",
    "goal",
    "must",
    "met",
)
_LOADS = (
    "measure",
    "CPU µs",
    "server busy",
    "of it in the kernel",
    "load busy",
    "load µs",
    "resolver µs",
    "refused",
)


def _result(row: Row) -> tuple[str, ...]:
    return (
        row.title,
        _value(row),
        _middle(row, "{:,.0f}", lambda result: result.calls / result.seconds),
        _middle(row, "{:.2f}", lambda result: result.p50 * 1e3),
        _middle(row, "{:.2f}", lambda result: result.p99 * 1e3),
        "" if row.goal is None else f"{row.goal:g}",
        "" if row.must is None else f"{row.must:g}",
        met(row),
    )


def _value(row: Row) -> str:
    """The median and its range, with its unit unless that is REF."""
    values = row.values
    if not values:
        return ""
    unit = "" if row.unit == "REF" else f" {row.unit}"
    return f"{median(values):.2f}{unit} ({min(values):.2f}–{max(values):.2f})"


def _notes(rows: Sequence[Row]) -> list[str]:
    """What is to be said of lines, each text once."""
    notes: dict[str, list[str]] = {}
    for row in rows:
        if row.note:
            notes.setdefault(row.note, []).append(row.title)
    lines = [f"{'; '.join(titles)}: {note}." for note, titles in notes.items()]
    return [*lines, ""] if lines else []


def _load(row: Row) -> tuple[str, ...]:
    return (
        row.title,
        _middle(row, "{:.1f}", lambda result: result.cpu * 1e6),
        _middle(row, "{:.0%}", lambda result: result.cpu * result.calls / result.seconds),
        _middle(row, "{:.0%}", _kernel),
        _middle(row, "{:.0%}", lambda result: 1 - result.spare / result.seconds),
        _middle(row, "{:.1f}", lambda result: (result.seconds - result.spare) / result.calls * 1e6),
        _middle(row, "{:.1f}", _resolver) if "resolver" in row.results[0].servers else "",
        _refused(row),
    )


def _kernel(result: Result) -> float:
    spent = result.cpu * result.calls
    return sum(kernel for _, kernel in result.servers.values()) / spent if spent else 0.0


def _resolver(result: Result) -> float:
    return result.servers["resolver"][0] / result.calls * 1e6


def _refused(row: Row) -> str:
    refused = sum(result.refused for result in row.results)
    return (
        f"{refused / (refused + sum(result.calls for result in row.results)):.1%}"
        if refused
        else ""
    )


def _middle(row: Row, form: str, of: Callable[[Result], float]) -> str:
    """The median of something, if it is known."""
    values = [value for value in map(of, row.results) if not isnan(value)]
    return form.format(median(values)) if values else ""


def _lines(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = (
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join([first, *others]).rstrip()

    return [line(heads), "  ".join("-" * width for width in widths), *map(line, rows)]
