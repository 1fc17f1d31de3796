"""Run the cells of a notebook in this process, and keep the value of each cell's last line.

    python -m tests.docs.notebooks examples/explore.ipynb     run it, and write the outputs into it

Pictures of Pillow's are kept as PNG, everything else as its repr, as Jupyter would.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

from PIL import Image


def run_notebook(file: Path) -> list[list[dict[str, Any]]]:
    """Return the outputs of each code cell; an exception of a cell is raised."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    cells = [cell for cell in json.loads(file.read_text())["cells"] if cell["cell_type"] == "code"]
    with contextlib.chdir(file.parent):
        return [run_cell("".join(cell["source"]), namespace) for cell in cells]


def run_cell(source: str, namespace: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what a cell prints, and the value of its last line if it is an expression."""
    tree, value = ast.parse(source), None
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, "cell", "exec"), namespace)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), namespace)
    outputs: list[dict[str, Any]] = []
    if text := printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": as_lines(text)})
    if value is not None:
        outputs.append({"output_type": "display_data", "metadata": {}, "data": shown(value)})
    return outputs


def shown(value: Any) -> dict[str, Any]:
    """Return a value in the forms in which a notebook keeps it."""
    if not isinstance(value, Image.Image):
        return {"text/plain": as_lines(repr(value))}
    content = io.BytesIO()
    value.save(content, "PNG", optimize=True)
    picture = base64.b64encode(content.getvalue()).decode()
    return {"image/png": picture, "text/plain": [f"<picture of {value.width} x {value.height}>"]}


def as_lines(text: str) -> list[str]:
    """Return a text as a notebook holds it."""
    return text.splitlines(keepends=True)


def main() -> None:
    """Run a notebook and write its outputs into it."""
    file = Path(sys.argv[1])
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    content, outputs = json.loads(file.read_text()), iter(run_notebook(file))
    for number, cell in enumerate(c for c in content["cells"] if c["cell_type"] == "code"):
        cell |= {"outputs": next(outputs), "execution_count": number + 1}
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
