"""A small notebook in the format of the lab's own, for tests of what reads, runs and releases them."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from llama2lab.cli.notebooks import task_lines
from llama2lab.lessons.n02_transformer.exercises import RMS_NORM

# No finished run is needed: the second cell only has the right look.
IMPORTS = """from llama2lab.lessons.n02_transformer.exercises import GQA_LOSS, RMS_NORM, WHY_ROOT
from llama2lab.lab.ask import ask, sealed
from llama2lab.lab.progress import Progress, check
lab = "finished_run()"
lab"""
RMS = '''def rms_norm(x, weight, eps):
    """Each token by its rms."""
    # the last dimension
    ...'''


def marked(source: str, key: str) -> NotebookNode:
    return new_code_cell(source, metadata={"lab": {"exercise": key}, "tags": ["exercise"]})


def demo() -> NotebookNode:
    """A code exercise, a question and a prediction."""
    return new_notebook(
        cells=[
            new_markdown_cell("# 02 A demo\n\nIt teaches nothing."),
            new_code_cell(IMPORTS),
            marked(f"{task_lines(RMS_NORM)}\n{RMS}\n\n\ncheck(RMS_NORM, rms_norm)", "02.rms_norm"),
            marked("ask(WHY_ROOT)", "02.why_root"),
            marked('measured = 0.02\nsealed(GQA_LOSS, measured, "what shows it")', "02.gqa_loss"),
            new_code_cell("measured  # the cells after it need what was measured"),
            new_code_cell("Progress().summary()"),
        ],
        metadata={
            "kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"},
            "language_info": {"name": "python"},
        },
    )


def write_demo(folder: Path) -> Path:
    path = folder / "02_demo.ipynb"
    nbformat.write(demo(), path)
    return path
