"""What notebook 00 calls; its first cell brings all of it by one line."""

from __future__ import annotations

from IPython.display import HTML

from llama2lab.lab.ask import ask, sealed
from llama2lab.lab.finished import finished_run
from llama2lab.lab.pictures import table
from llama2lab.lab.progress import Progress
from llama2lab.lessons.n00_start.exercises import COSTS, EXERCISES, FIRST_TALK, RECIPE
from llama2lab.lessons.n00_start.experiments import twenty_questions
from llama2lab.lessons.n00_start.figures import notebooks, people_table, recipe_seconds, recipe_table, steps_table
from llama2lab.lessons.n00_start.widget_chat import ChatExplorer
from llama2lab.lessons.n00_start.widget_playground import Playground
from llama2lab.lessons.recipe_map import opening, recipe_map
from llama2lab.report import plots
from llama2lab.report.summary import figure_text, find, total_seconds
from llama2lab.stages.pretrain import parameter_count
from llama2lab.town.corpus import pretraining_corpus

__all__ = [
    "COSTS",
    "EXERCISES",
    "FIRST_TALK",
    "HTML",
    "RECIPE",
    "ChatExplorer",
    "Playground",
    "Progress",
    "ask",
    "figure_text",
    "find",
    "finished_run",
    "notebooks",
    "opening",
    "parameter_count",
    "people_table",
    "plots",
    "pretraining_corpus",
    "recipe_map",
    "recipe_seconds",
    "recipe_table",
    "sealed",
    "steps_table",
    "table",
    "total_seconds",
    "twenty_questions",
]
