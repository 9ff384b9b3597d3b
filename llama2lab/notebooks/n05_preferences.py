"""What notebook 05 calls; its first cell brings all of it by one line."""

from __future__ import annotations

from IPython.display import HTML

from llama2lab.annotation.agreement.charts import vendors_figure
from llama2lab.annotation.agreement.quality import alarms, quality
from llama2lab.annotation.form.widget import AnnotationForm
from llama2lab.annotation.rows import resolve
from llama2lab.engine.scale import GRADES, MARGINS
from llama2lab.evidence.claims_plot import claims_plot
from llama2lab.lab import pictures, shown
from llama2lab.lab.ask import ask, sealed
from llama2lab.lab.finished import finished_run
from llama2lab.lab.progress import Progress, check
from llama2lab.lessons.n05_preferences import experiments as preferences
from llama2lab.lessons.n05_preferences.exercises import (
    AC1,
    EXERCISES,
    GRADES_ORDER,
    MAJORITY,
    OWN_AGREEMENT,
    PAIRED_BOOTSTRAP,
    PERCENT,
    WHY_AC1,
)
from llama2lab.lessons.n05_preferences.figures import resolved_tables
from llama2lab.lessons.n05_preferences.widget_annotation_time import AnnotationTime
from llama2lab.lessons.n06_rewards.experiments import pair_table
from llama2lab.lessons.recipe_map import recipe_map
from llama2lab.report.plots import TABLE_8
from llama2lab.report.summary import difference, figure_text
from llama2lab.town.annotators import CUTS, VENDORS

__all__ = [
    "AC1",
    "CUTS",
    "EXERCISES",
    "GRADES",
    "GRADES_ORDER",
    "HTML",
    "MAJORITY",
    "MARGINS",
    "OWN_AGREEMENT",
    "PAIRED_BOOTSTRAP",
    "PERCENT",
    "TABLE_8",
    "VENDORS",
    "WHY_AC1",
    "AnnotationForm",
    "AnnotationTime",
    "Progress",
    "alarms",
    "ask",
    "check",
    "claims_plot",
    "difference",
    "figure_text",
    "finished_run",
    "pair_table",
    "pictures",
    "preferences",
    "quality",
    "recipe_map",
    "resolve",
    "resolved_tables",
    "sealed",
    "shown",
    "vendors_figure",
]
