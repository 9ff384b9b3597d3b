"""A small notebook in the format of the lab's own, for tests of what reads, runs and releases them."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

# No finished run is needed: the second cell only has the right look.
IMPORTS = """from llama2lab.lessons.n02_transformer.exercises import GQA_LOSS, RMS_NORM, WHY_ROOT
from llama2lab.lab.progress import Progress, check, compare, predict
lab = "finished_run()"
lab"""


def marked(source: str, **meta: str) -> NotebookNode:
    return new_code_cell(source, metadata={"lab": meta, "tags": sorted(meta)})


def demo() -> NotebookNode:
    """A code exercise, a question and a prediction."""
    return new_notebook(
        cells=[
            new_markdown_cell("# 02 A demo\n\nIt teaches nothing."),
            new_code_cell(IMPORTS),
            new_code_cell("RMS_NORM"),
            marked(
                'def rms_norm(x, weight, eps):\n    """Each token by its rms."""\n    # the last dimension\n    ...',
                exercise="02.rms_norm",
            ),
            marked("check(RMS_NORM, rms_norm)", check="02.rms_norm"),
            new_code_cell("WHY_ROOT"),
            marked('why_root = ...  # "a", "b" or "c"', exercise="02.why_root"),
            marked("check(WHY_ROOT, why_root)", check="02.why_root"),
            new_code_cell("GQA_LOSS"),
            marked("gqa_loss = ...", exercise="02.gqa_loss"),
            marked("predict(GQA_LOSS, gqa_loss)", check="02.gqa_loss"),
            new_code_cell("measured = 0.02"),
            marked("compare(GQA_LOSS, measured)", compare="02.gqa_loss"),
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
