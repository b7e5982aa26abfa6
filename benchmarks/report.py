"""What the records say: tables, and which of the project's targets are met."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from contenders import YARDSTICK

Row = dict[str, Any]


class Target(NamedTuple):
    """A ratio between two contenders, and how small or large it should be."""

    part: str
    where: Row  # the fields that both rows have
    field: str
    top: str
    bottom: str
    sign: str  # "<=" or ">="
    limit: float


def _targets() -> list[Target]:
    """What the project has set itself, beside a parallel transformer and labml's shared keys and values."""
    found: list[Target] = []

    def want(part: str, where: Row, field: str, top: str, bottom: str, sign: str, limit: float) -> None:
        found.append(Target(part, where, field, top, bottom, sign, limit))

    for size, threads, sequence, native in (
        ("M", 1, 2.3, 1.3),
        ("M", 2, 2.8, 1.3),
        ("L", 1, 1.5, 1.2),
        ("L", 2, 1.5, 1.2),
        ("M, T = 512", 1, 3.0, 2.0),
        ("M, T = 512", 2, 3.0, 2.0),
    ):
        where = {"label": size, "threads": threads}
        want("speed", where, "seconds", "sequence", YARDSTICK, "<=", sequence)
        want("speed", where, "seconds", "native", YARDSTICK, "<=", native)
    for size, threads, sequence, native in (("M", 1, 2.2, 5.0), ("M", 2, 2.2, 5.0), ("L", 2, 1.8, 2.3)):
        where = {"label": size, "threads": threads}
        want("speed", where, "seconds", "labml shared KV", "sequence", ">=", sequence)
        want("speed", where, "seconds", "labml shared KV", "native", ">=", native)
    for size in ("M", "L"):
        for name, limit in (("sequence", 1.25), ("native", 0.9), ("native, recompute", 0.5)):
            want("memory", {"label": size}, "memory_mb", name, YARDSTICK, "<=", limit)
    for size in ("d = 128", "d = 512"):
        for batch, limit in ((1, 1.0), (64, 1.2)):
            for threads in (1, 2):
                where = {"what": "decode", "label": size, "B": batch, "threads": threads}
                want("decoding", where, "tokens_per_second", "decoder", YARDSTICK, ">=", limit)
    return found


TARGETS = _targets()


def judged(part: str, rows: Sequence[Row]) -> list[Row]:
    """The targets of a part with the values that its rows give; value and met are None where one is missing.

    Times of steps are compared by their ratios to the yardstick, which were taken round by round.
    """
    verdicts = []
    for target in (target for target in TARGETS if target.part == part):
        here = {row["name"]: row for row in rows if row.items() >= target.where.items()}
        top, bottom = (here.get(name, {}) for name in (target.top, target.bottom))
        value = None
        field = "ratio" if target.field == "seconds" else target.field
        if top.get(field) and bottom.get(field):
            value = top[field] / bottom[field]
        met = (
            None if value is None else value <= target.limit if target.sign == "<=" else value >= target.limit
        )
        verdicts.append(target._asdict() | {"value": value, "met": met})
    return verdicts


def report(record: Row) -> str:
    """A record as text: where it was measured, a table for each group of rows, the targets."""
    machine = record["machine"]
    about = f"{machine['cpu']}, {machine['cores']} cores, {machine['capability']}, torch {machine['torch']}"
    blocks = [f"{record['part']}: {about}, {record['date']}{', quick' if record['quick'] else ''}"]
    layout = {"growth": _by_size, "decoding": _by_place}.get(record["part"], _by_name)
    groups: dict[str, list[Row]] = {}
    for row in record["rows"]:
        groups.setdefault(_group(row, record["part"]), []).append(row)
    blocks += [f"{head}\n{_grid(layout(rows))}" for head, rows in groups.items()]
    if record["targets"]:
        lines: list[tuple[str, ...]] = [("target", "", "wanted", "measured", "")]
        for t in record["targets"]:
            where = ", ".join(f"{key} {value}" for key, value in t["where"].items() if key != "what")
            measured = "not measured" if t["value"] is None else f"{t['value']:.2f}"
            verdict = {None: "", True: "met", False: "NOT MET"}[t["met"]]
            wanted = f"{t['sign']} {t['limit']:g}"
            lines.append((f"{t['field']}: {t['top']} / {t['bottom']}", where, wanted, measured, verdict))
        blocks.append(_grid(lines))
    return "\n\n".join(blocks)


def _group(row: Row, part: str) -> str:
    """What the rows of one table share: all sizes, all but the one that grows, or what is done."""
    if part == "decoding":
        return f"{row['what']}, T = {row['T']}; 1 thread: CPU time, 2: wall time"
    sizes = " ".join(f"{key}{row[key]}" for key in ("d", "H", "F", "L", "T", "B"))
    clock = "1 thread, CPU time" if row["threads"] == 1 else f"{row['threads']} threads, wall time"
    what = "steps" if row["what"] == "floor" else row["what"]
    if part == "growth":
        return f"{what} over {row['label']}, {clock}"
    return f"{what} {row['label']}: {sizes}, {clock}"


def _by_size(rows: list[Row]) -> list[tuple[str, ...]]:
    """A line for each size, a column for each contender: seconds or peak MB, and what the floor is."""
    axis = rows[0]["label"]
    cells: dict[tuple[str, int], str] = {}
    for row in rows:
        number = row["gemm"] + row["traffic"] if "gemm" in row else row.get("seconds", row.get("memory_mb"))
        cells[row["name"], row[axis]] = "-" if number is None else f"{number:.3g}"
    names, sizes = dict.fromkeys(row["name"] for row in rows), sorted({row[axis] for row in rows})
    return [(axis, *names), *((str(n), *(cells.get((name, n), "") for name in names)) for n in sizes)]


PLACE = ("d", "H", "F", "L", "threads", "B")
COLUMNS = {
    "steps": ("steps", "{}"),
    "seconds": ("seconds", "{:.4g}"),
    "low": ("lowest", "{:.4g}"),
    "high": ("highest", "{:.4g}"),
    "ratio": ("/ SDPA", "{:.2f}"),
    "tokens_per_second": ("tokens/s", "{:.0f}"),
    "memory_mb": ("peak MB", "{:.0f}"),
    "parameters": ("parameters", "{:,}"),
    "cache_bytes_per_token": ("cache bytes/token", "{:,}"),
}


def _by_place(rows: list[Row]) -> list[tuple[str, ...]]:
    """As `_by_name`, for rows of several sizes, threads and batches: each line begins with its own."""
    return _by_name(rows, PLACE)


def _by_name(rows: list[Row], place: Sequence[str] = ()) -> list[tuple[str, ...]]:
    """A heading and a line for each row, with the fields of `place` and the columns that some row has."""
    columns = {key: about for key, about in COLUMNS.items() if any(row.get(key) is not None for row in rows)}
    lines = [("", *place, *(title for title, _ in columns.values()))]
    for row in (row for row in rows if "not_run" not in row):
        numbers = [(row.get(key), form) for key, (_, form) in columns.items()]
        cells = ["" if n is None else form.format(n) for n, form in numbers]
        lines.append((row["name"], *(str(row[key]) for key in place), *cells))
    reasons: dict[str, dict[str, None]] = {}  # a name once, however many places it is missing in
    for row in (row for row in rows if "not_run" in row):
        reasons.setdefault(row["not_run"], {})[row["name"]] = None
    return lines + [(f"not run, {reason}: {'; '.join(names)}",) for reason, names in reasons.items()]


def _grid(lines: list[tuple[str, ...]]) -> str:
    """Lines of cells as aligned text; a line of one cell is a remark and runs over all columns."""
    cells = [line for line in lines if len(line) > 1]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    text = []
    for first, *rest in lines:
        aligned = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=False)]
        text.append("  ".join([first.ljust(widths[0]), *aligned]).rstrip())
    return "\n".join(text)
