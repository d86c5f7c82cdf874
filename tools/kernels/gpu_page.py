"""The page of `gpu_check.py`, from its report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

Row = dict[str, Any]
WAYS = ("kernel", "torch", "eager", "compiled", "sdpa")


def page(report: Row) -> str:
    """Format the report as Markdown."""
    lines = ["# densevl on a CUDA device", ""]
    if report["dry_run"]:
        lines += ["**A dry run on a CPU: every time, memory figure and share below is meaningless.**", ""]
    lines += [f"Result: **{report['result']}**.", "", *_stages(report["stages"])]
    for name, write in {"machine": _machine, "bench": _bench, "launches": _launches, "models": _models}.items():
        rows = [row for part in report["stages"].get(name, {"parts": {}})["parts"].values() for row in part["rows"]]
        if rows:
            lines += ["", *write(rows)]
    return "\n".join([*lines, "", *_wrong(report["stages"])]).rstrip() + "\n"


def table(heads: list[str], rows: Iterable[list[Any]]) -> list[str]:
    """Format a table in Markdown; None is an empty cell."""
    cells = (["" if cell is None else str(cell).replace("|", "\\|") for cell in row] for row in rows)
    return ["| " + " | ".join(row) + " |" for row in (heads, ["---"] * len(heads), *cells)]


def _stages(stages: dict[str, Row]) -> list[str]:
    def rows() -> Iterator[list[Any]]:
        for name, stage in stages.items():
            parts = stage["parts"].values()
            good = sum(row["ok"] for part in parts for row in part["rows"])
            good += sum(part["tests"].get("PASSED", 0) for part in parts)
            bad = sum(not row["ok"] for part in parts for row in part["rows"])
            bad += sum(part["tests"].get(verdict, 0) for part in parts for verdict in ("FAILED", "ERROR"))
            yield [name, stage["what"], stage["status"], good, bad, stage["seconds"]]

    return table(["stage", "what", "ended", "agree", "do not", "s"], rows())


def _wrong(stages: dict[str, Row]) -> list[str]:
    """List all that disagrees, broke or was left out, with the reason."""
    said = []
    for name, stage in stages.items():
        for label, part in stage["parts"].items():
            told = [part] if "why" in part else []
            told += [row for row in part["rows"] if row.get("why")] + part["broken"]
            for row in told:
                what = row.get("name") or row.get("recipe") or row.get("test") or label
                said.append(f"- {name}, {what}: {row['why']}")
            for row in part["rows"]:
                for way, figures in row.get("ways", {}).items():
                    if figures["why"]:
                        said.append(f"- {name}, {row['case']} {row['dtype']}, {way}: {figures['why']}")
    return ["## What did not run or does not agree", "", *said] if said else []


def _machine(rows: list[Row]) -> list[str]:
    facts = [f"{key} {value}" for key, value in rows[0].items() if key not in ("ok", "why")]
    return [", ".join(facts) + "."]


def _bench(rows: list[Row]) -> list[str]:
    most = [row for row in rows if row["case"] == "peaks"]
    lines = ["## Time and roofline", ""]
    if most:
        products = ", ".join(f"{kind} {most[0][kind] / 1e12:.1f}" for kind in ("float16", "bfloat16", "float32"))
        lines += [
            f"Measured peaks: a copy {most[0]['bytes_per_s'] / 1e9:.0f} GB/s; products in TFLOP/s: {products}.",
            "",
        ]

    def cells() -> Iterator[list[Any]]:
        for row in rows:
            if row["case"] == "peaks":
                continue
            ways, roof = row["ways"], row.get("roofline")
            ms = (_shown(ways, way, "seconds", lambda seconds: f"{seconds * 1e3:.3f}") for way in WAYS)
            mib = (_shown(ways, way, "extra_mib", lambda extra: f"{extra:.0f}") or "-" for way in ("kernel", "eager"))
            error = _shown(ways, "kernel", "error", lambda error: f"{error:.1e}")
            share = f"{roof['share']:.0%} of {roof['bound']}" if roof else None
            yield [row["case"], row["dtype"], row["shape"], *ms, " / ".join(mib), share, error]

    heads = ["case", "type", "size", *(f"{way} ms" for way in WAYS), "MiB, kernel / eager", "roofline", "error"]
    return lines + table(heads, cells())


def _shown(ways: Row, way: str, key: str, write: Callable[[float], str]) -> str | None:
    figure = ways.get(way, {}).get(key)
    return None if figure is None else write(figure)


def _launches(rows: list[Row]) -> list[str]:
    def cells() -> Iterator[list[Any]]:
        for row in rows:
            was = row.get("recorded", {})
            pairs = ([each.get(key) for each in (row, was)] for key in ("registers", "spills", "shared"))
            yield [row["name"], *(" / ".join("-" if one is None else str(one) for one in pair) for pair in pairs)]

    head = ["## Launches", "", "As compiled for this device / as recorded ahead of time in docs/kernels.json.", ""]
    return head + table(["launch", "registers", "spills", "shared bytes"], cells())


def _models(rows: list[Row]) -> list[str]:
    cells = ([row["recipe"], row["precision"], None if "same" not in row else f"{row['same']:.2%}"] for row in rows)
    return ["## Labels as on the CPU", "", *table(["recipe", "precision", "same"], cells)]
