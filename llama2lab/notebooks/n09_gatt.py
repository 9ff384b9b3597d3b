"""What notebook 09 calls; its first cell brings all of it by one line."""

from __future__ import annotations

from IPython.display import HTML

from llama2lab.evidence.claims_plot import claims_plot
from llama2lab.lab.ask import ask, sealed
from llama2lab.lab.chips import token_picture
from llama2lab.lab.finished import finished_run
from llama2lab.lab.pictures import table
from llama2lab.lab.progress import Progress, check
from llama2lab.lab.shown import show
from llama2lab.lessons.n01_tokenizer.widget_packing import MASKS, marked_tokens
from llama2lab.lessons.n09_gatt import experiments as gatt
from llama2lab.lessons.n09_gatt import figures as gatt_shown
from llama2lab.lessons.n09_gatt.dialogues import kept_dialogues
from llama2lab.lessons.n09_gatt.exercises import DIALOGUE_MESSAGES, EXERCISES, GATT_MASK, GATT_ROW, TURN_20, WHERE
from llama2lab.lessons.n09_gatt.ghost_picture import GhostPicture
from llama2lab.lessons.n09_gatt.ghost_rows import GhostRows, training_row
from llama2lab.lessons.n09_gatt.widget_ghost import GhostExplorer
from llama2lab.lessons.recipe_map import recipe_map
from llama2lab.model.chat import encode_chats
from llama2lab.report.plots import gatt_by_turn
from llama2lab.stages import gatt as gatt_stage
from llama2lab.stages.gatt import gatt_rows, sample_dialogues
from llama2lab.town.prompts import dialogue_prompts

__all__ = [
    "DIALOGUE_MESSAGES",
    "EXERCISES",
    "GATT_MASK",
    "GATT_ROW",
    "HTML",
    "MASKS",
    "TURN_20",
    "WHERE",
    "GhostExplorer",
    "GhostPicture",
    "GhostRows",
    "Progress",
    "ask",
    "check",
    "claims_plot",
    "dialogue_prompts",
    "encode_chats",
    "finished_run",
    "gatt",
    "gatt_by_turn",
    "gatt_rows",
    "gatt_shown",
    "gatt_stage",
    "kept_dialogues",
    "marked_tokens",
    "recipe_map",
    "sample_dialogues",
    "sealed",
    "show",
    "table",
    "token_picture",
    "training_row",
]
