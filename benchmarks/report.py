"""Records as text: tables, and which of the project's targets are met."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from contenders import YARDSTICK

Row = dict[str, Any]


class Target(NamedTuple):
    """A ratio between two contenders, and its limit."""

    part: str
    where: Row  # fields that both rows have in common
    field: str
    top: str
    bottom: str
    sign: str  # "<=" or ">="
    limit: float


def _targets() -> list[Target]:
    """Return the project's targets against a parallel transformer and labml."""
    targets: list[Target] = []
    for size, threads, sequence, native in (
        ("M", 1, 2.3, 1.3),
        ("M", 2, 2.8, 1.3),
        ("L", 1, 1.5, 1.2),
        ("L", 2, 1.5, 1.2),
        ("M, T = 512", 1, 3.0, 2.0),
        ("M, T = 512", 2, 3.0, 2.0),
    ):
        where = {"label": size, "threads": threads}
        for name, limit in (("sequence", sequence), ("native", native)):
            ratio = ("seconds", name, YARDSTICK)
            targets.append(Target("speed", where, *ratio, "<=", limit))
    for label, limit in (
        ("d = 32", 1.3),
        ("d = 64", 1.3),
        ("B = 4", 1.5),
        ("B = 16", 1.1),
    ):
        where = {"label": label, "threads": 1}
        targets.append(
            Target("corners", where, "seconds", "native", YARDSTICK, "<=", limit)
        )
    for size, threads, sequence, native in (
        ("M", 1, 2.2, 5.0),
        ("M", 2, 2.2, 5.0),
        ("L", 2, 1.8, 2.3),
    ):
        where = {"label": size, "threads": threads}
        for name, limit in (("sequence", sequence), ("native", native)):
            ratio = ("seconds", "labml shared KV", name)
            targets.append(Target("speed", where, *ratio, ">=", limit))
    for size in ("M", "L"):
        for name, limit in (
            ("sequence", 1.25),
            ("native", 0.9),
            ("native, recompute", 0.5),
        ):
            ratio = ("memory_mb", name, YARDSTICK)
            targets.append(Target("memory", {"label": size}, *ratio, "<=", limit))
    for size in ("d = 128", "d = 512"):
        for batch, limit in ((1, 1.0), (64, 1.2)):
            for threads in (1, 2):
                where = {"what": "decode", "label": size, "B": batch}
                where |= {"threads": threads}
                ratio = ("tokens_per_second", "decoder", YARDSTICK)
                targets.append(Target("decoding", where, *ratio, ">=", limit))
    return targets


TARGETS = _targets()


def judged(part: str, rows: Sequence[Row]) -> list[Row]:
    """Evaluate the targets of a part with the values in its rows.

    Step times are compared by their ratios to the yardstick, which are taken round by
    round. `value` and `met` are None where a row is missing.
    """
    verdicts = []
    for target in (target for target in TARGETS if target.part == part):
        by_name = {
            row["name"]: row for row in rows if row.items() >= target.where.items()
        }
        top, bottom = (by_name.get(name, {}) for name in (target.top, target.bottom))
        value = None
        field = "ratio" if target.field == "seconds" else target.field
        if top.get(field) and bottom.get(field):
            value = top[field] / bottom[field]
        met = None
        if value is not None:
            at_most = target.sign == "<="
            met = value <= target.limit if at_most else value >= target.limit
        verdicts.append(target._asdict() | {"value": value, "met": met})
    return verdicts


def report(record: Row) -> str:
    """Format a record: its machine, a table for each group of rows, the targets."""
    machine = record["machine"]
    setup = f"{machine['cpu']}, {machine['cores']} cores, {machine['capability']}"
    setup += f", torch {machine['torch']}, {record['date']}"
    blocks = [f"{record['part']}: {setup}{', quick' if record['quick'] else ''}"]
    layout = {"growth": _by_size, "decoding": _by_setting}.get(
        record["part"], _by_name
    )
    groups: dict[str, list[Row]] = {}
    for row in record["rows"]:
        groups.setdefault(_group(row, record["part"]), []).append(row)
    blocks += [f"{head}\n{_grid(layout(rows))}" for head, rows in groups.items()]
    if record["targets"]:
        lines: list[tuple[str, ...]] = [("target", "", "wanted", "measured", "")]
        for t in record["targets"]:
            about = [f"{k} {value}" for k, value in t["where"].items() if k != "what"]
            measured = "not measured" if t["value"] is None else f"{t['value']:.2f}"
            verdict = {None: "", True: "met", False: "NOT MET"}[t["met"]]
            ratio = f"{t['field']}: {t['top']} / {t['bottom']}"
            wanted = f"{t['sign']} {t['limit']:g}"
            lines.append((ratio, ", ".join(about), wanted, measured, verdict))
        blocks.append(_grid(lines))
    return "\n\n".join(blocks)


def _group(row: Row, part: str) -> str:
    """Return the title of a row's table: the sizes, the growing size, or the task."""
    if part == "decoding":
        return f"{row['what']}, T = {row['T']}; 1 thread: CPU time, 2: wall time"
    sizes = " ".join(f"{key}{row[key]}" for key in ("d", "H", "F", "L", "T", "B"))
    threads = row["threads"]
    clock = "1 thread, CPU time" if threads == 1 else f"{threads} threads, wall time"
    what = "steps" if row["what"] == "floor" else row["what"]
    if part == "growth":
        return f"{what} over {row['label']}, {clock}"
    return f"{what} {row['label']}: {sizes}, {clock}"


def _by_size(rows: list[Row]) -> list[tuple[str, ...]]:
    """Return a line per size, a column per contender: seconds, peak MB or floor."""
    axis = rows[0]["label"]
    cells: dict[tuple[str, int], str] = {}
    for row in rows:
        number = row.get("seconds", row.get("memory_mb"))
        if "gemm" in row:
            number = row["gemm"] + row["traffic"]
        cells[row["name"], row[axis]] = "-" if number is None else f"{number:.3g}"
    names = dict.fromkeys(row["name"] for row in rows)
    sizes = sorted({row[axis] for row in rows})
    return [
        (axis, *names),
        *((str(n), *(cells.get((name, n), "") for name in names)) for n in sizes),
    ]


SETTING = ("d", "H", "F", "L", "threads", "B")
COLUMNS = {
    "steps": ("steps", "{}"),
    "seconds": ("seconds", "{:.4g}"),
    "low": ("lowest", "{:.4g}"),
    "high": ("highest", "{:.4g}"),
    "ratio": ("/ SDPA", "{:.2f}"),
    "tokens_per_second": ("tokens/s", "{:.0f}"),
    "memory_mb": ("peak MB", "{:.0f}"),
    "parameters": ("parameters", "{:,}"),
    "compile_seconds": ("compiling", "{:.0f}"),
    "cache_bytes_per_token": ("cache bytes/token", "{:,}"),
}


def _by_setting(rows: list[Row]) -> list[tuple[str, ...]]:
    """Like `_by_name`, but each line begins with its size, threads and batch."""
    return _by_name(rows, SETTING)


def _by_name(rows: list[Row], setting: Sequence[str] = ()) -> list[tuple[str, ...]]:
    """Return a heading and a line per row, with the columns that some row has."""
    columns = {
        key: about
        for key, about in COLUMNS.items()
        if any(row.get(key) is not None for row in rows)
    }
    lines = [("", *setting, *(title for title, _ in columns.values()))]
    for row in (row for row in rows if "not_run" not in row):
        numbers = [(row.get(key), form) for key, (_, form) in columns.items()]
        cells = ["" if n is None else form.format(n) for n, form in numbers]
        lines.append((row["name"], *(str(row[key]) for key in setting), *cells))
    # Each name once, however often it is missing.
    reasons: dict[str, dict[str, None]] = {}
    for row in (row for row in rows if "not_run" in row):
        reasons.setdefault(row["not_run"], {})[row["name"]] = None
    return lines + [
        (f"not run, {reason}: {'; '.join(names)}",)
        for reason, names in reasons.items()
    ]


def _grid(lines: list[tuple[str, ...]]) -> str:
    """Align lines of cells as text; a line of one cell is a remark."""
    cells = [line for line in lines if len(line) > 1]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    text = []
    for first, *rest in lines:
        pairs = zip(rest, widths[1:], strict=False)
        aligned = [cell.rjust(width) for cell, width in pairs]
        text.append("  ".join([first.ljust(widths[0]), *aligned]).rstrip())
    return "\n".join(text)
