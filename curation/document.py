"""Writes the generated parts of data/README.md: the catalog's tables and the scores.

python -m curation.document
"""

import re
from pathlib import Path

from curation import schema
from curation.analyse import in_order

README = Path(__file__).parents[1] / "data" / "README.md"
STEPS = ("basic", "visual", "motion")


def tables() -> str:
    """The catalog's schema as Markdown: a heading, a sentence and a table of columns a table."""
    lines = []
    for name, table in schema.tables().items():
        if name in STEPS:
            continue
        lines += [
            f"### `{name}`",
            "",
            table.meaning,
            "",
            "| column | type | meaning |",
            "|---|---|---|",
        ]
        for column, field in table.columns.items():
            key = " (key)" if column in table.key else ""
            meaning = field.meaning.replace("|", "\\|").replace("<", "\\<")
            lines.append(f"| `{column}`{key} | {field.type} | {meaning} |")
        lines.append("")
    return "\n".join(lines).strip()


def scores() -> str:
    """Every score as Markdown: one table a step, and where each measure comes from."""
    lines = []
    for step in STEPS:
        lines += [
            f"#### `{step}`",
            "",
            "| column | type | unit | meaning | scorer |",
            "|---|---|---|---|---|",
        ]
        for one in in_order():
            for name, column in one.columns.items():
                if one.step == step:
                    full = "" if "light" in one.sets else ", `scorers=full`"
                    cells = (
                        column.type,
                        column.unit,
                        column.meaning,
                        f"{one.name} {one.version}{full}",
                    )
                    lines.append(
                        f"| `{name}` | " + " | ".join(c.replace("|", "\\|") for c in cells) + " |"
                    )
        lines.append("")
    lines += ["| scorer | where it comes from |", "|---|---|"]
    for one in in_order():
        if one.step != "thumbnails":
            lines.append(f"| {one.name} | {one.source} |")
    return "\n".join(lines)


def written(text: str) -> str:
    """The README with its generated parts brought up to date."""
    for name, part in (("tables", tables()), ("scores", scores())):
        pattern = f"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)"
        text, found = re.subn(
            pattern, lambda m, p=part: f"{m[1]}{p}\n{m[2]}", text, flags=re.DOTALL
        )
        if found != 1:
            raise ValueError(f"{README} has no place for {name}")
    return text


if __name__ == "__main__":
    README.write_text(written(README.read_text(encoding="utf-8")), encoding="utf-8")
