"""Parts of a page of HTML that opens from disk, with everything in it."""

import base64
import io
from collections.abc import Callable, Mapping
from html import escape
from string import Template

Cell = tuple[str, float | None]  # of a table: its text, and the number by which it sorts, if that is not the text
# In the script: numbers sort as numbers; an empty cell goes last in either direction.
PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>$title</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 }
td, th { padding: 0.3em 0.7em; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top }
td:first-child, th:first-child, td.text { text-align: left }
th { background: #f4f4f4; position: sticky; top: 0; cursor: pointer }
figure { display: inline-block; margin: 0.5em }
</style>
<body>
<h1>$title</h1>
$sections
<script>
for (const heading of document.querySelectorAll("th")) heading.addEventListener("click", () => {
  const body = heading.closest("table").tBodies[0], column = heading.cellIndex;
  const sign = heading.ariaSort === "ascending" ? -1 : 1;
  for (const cell of heading.parentNode.cells) cell.ariaSort = null;
  heading.ariaSort = sign === 1 ? "ascending" : "descending";
  const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
  body.append(...[...body.rows].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === "" || y === "") return (x === "") - (y === "");
    return sign * (isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y);
  }));
});
</script>
</body>
</html>
""")


def page(title: str, about: str, sections: Mapping[str, str]) -> bytes:
    """The page of these sections, heading -> HTML, after a line about it all; a section without content is left out."""
    shown = [f"<h2>{heading}</h2>\n{content}" for heading, content in sections.items() if content]
    return PAGE.substitute(title=escape(title), sections="\n".join([f"<p>{about}</p>", *shown])).encode()


def table(header: list[str], rows: list[list[Cell | str]]) -> str:
    """HTML; a cell that is a string is markup already."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"


def _cell(cell: Cell | str) -> str:
    if isinstance(cell, str):
        return f"<td>{cell}</td>"
    text, value = cell
    attribute = 'class="text"' if value is None else f'data-value="{value!r}"'
    return f"<td {attribute}>{escape(text)}</td>"


def figure(kind: str, alt: str, caption: str, save: Callable, **options) -> str:
    """A picture of the MIME type `kind` that `save` writes into a file, and a caption below it, if there is one."""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{embedded(kind, alt, save, **options)}{below}</figure>"


def embedded(kind: str, alt: str, save: Callable, **options) -> str:
    """The same without a caption."""
    data = base64.b64encode(saved(save, **options)).decode()
    return f'<img alt="{escape(alt)}" src="data:{kind};base64,{data}">'


def saved(save: Callable, **options) -> bytes:
    """What `save` writes into a file."""
    buffer = io.BytesIO()
    save(buffer, **options)
    return buffer.getvalue()
