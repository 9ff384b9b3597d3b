"""What a model costs in money, energy and carbon: Llama 2 by the report's table 2, and this lab's own run.

    energy = GPU hours x power of a GPU x PUE       carbon = energy x carbon intensity of the grid
    money  = GPU hours x price of an hour + comparisons x price of a comparison

PUE (power usage effectiveness) is what the whole building draws for each watt of the machines. The report counts
GPUs alone (PUE 1) and names no carbon intensity; its tons divided by its energy give the one it must have used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ipywidgets as w

from llama2lab.lab.explorer import Explorer, dropdown, slider, wide
from llama2lab.lab.finished import Finished
from llama2lab.lab.pictures import number, table
from llama2lab.report.summary import metrics, total_seconds

TABLE_2 = {
    "7B": (184_320, 400, 31.22),
    "13B": (368_640, 400, 62.44),
    "34B": (1_038_336, 350, 153.90),
    "70B": (1_720_320, 400, 291.42),
}  # GPU hours (A100-80GB), watts, tCO2eq: the report's table 2
REPORTED_TONS = 539.00  # table 2, total
COMPARISONS = 1_418_091  # table 26, all 14 batches
# What preference data cost, in million dollars, by Nathan Lambert's two posts on the report (18 and 21 July 2023).
LAMBERT = (
    ("first post, text and summary", 25.0),
    ("first post, corrected in place: 'or more'", 8.0),
    ("what the correction says it replaced", 20.0),
)
ALL = "all four"


@dataclass(frozen=True)
class Costs:
    kwh: float
    tons: float  # CO2 equivalents
    compute: float  # dollars
    data: float  # dollars

    @property
    def total(self) -> float:
        return self.compute + self.data


def implied_intensity() -> float:
    """kg CO2eq a kWh that table 2's tons and GPU energy amount to."""
    kwh = sum(hours * watts / 1000 for hours, watts, _ in TABLE_2.values())
    return 1000 * sum(tons for _, _, tons in TABLE_2.values()) / kwh


def hours_and_watts(size: str) -> tuple[float, float]:
    """GPU hours and mean power of a size of table 2, or of all four together."""
    rows = list(TABLE_2.values()) if size == ALL else [TABLE_2[size]]
    hours = sum(h for h, _, _ in rows)
    return hours, sum(h * p for h, p, _ in rows) / hours


def costs(
    gpu_hours: float,
    watts: float,
    pue: float,
    intensity: float,
    price_hour: float,
    comparisons: float = 0.0,
    price_each: float = 0.0,
) -> Costs:
    """Energy, carbon and money. `intensity` in kg CO2eq a kWh, prices in dollars."""
    kwh = gpu_hours * watts / 1000 * pue
    return Costs(kwh, kwh * intensity / 1000, gpu_hours * price_hour, comparisons * price_each)


def report_check(intensity: float) -> list[dict[str, Any]]:
    """Table 2 worked out again, GPUs alone: each row's energy and tons beside the printed ones, then the totals."""
    rows: list[dict[str, Any]] = []
    for size, (hours, watts, tons) in TABLE_2.items():
        got = costs(hours, watts, 1.0, intensity, 0.0)
        rows.append(
            {"size": size, "hours": hours, "watts": watts, "mwh": got.kwh / 1000, "tons": got.tons, "printed": tons}
        )
    total = {key: sum(row[key] for row in rows) for key in ("hours", "mwh", "tons")}
    return [*rows, {"size": "total", "watts": total["mwh"] * 1e6 / total["hours"], "printed": REPORTED_TONS, **total}]


def lambert_rows() -> list[tuple[str, str, str]]:
    """Each of his figures, and what it comes to for one comparison of table 26."""
    return [(where, f"{millions:g} million", f"{millions * 1e6 / COMPARISONS:.2f}") for where, millions in LAMBERT]


def lab_comparisons(lab: Finished) -> int:
    """Pairs that (simulated) annotators judged for the run's reward models."""
    found = [
        metrics(lab.figures, f"preferences-v{v}").get(kind) or {}
        for v in range(1, 6)
        for kind in ("helpfulness", "safety")
    ]
    return sum(int(f.get("pairs", 0)) for f in found)


def lab_costs(lab: Finished, watts: float, intensity: float, dollars_kwh: float, price_each: float) -> Costs:
    """This run's own: its measured seconds at a laptop's power, paid by the kWh, and what its comparisons would have
    cost if people had judged them at `price_each`."""
    hours = total_seconds(lab.figures) / 3600
    return costs(hours, watts, 1.0, intensity, watts / 1000 * dollars_kwh, lab_comparisons(lab), price_each)


def money(dollars: float) -> str:
    if dollars >= 1e6:
        return f"${dollars / 1e6:,.2f} million"
    return f"${dollars:,.2f}" if dollars >= 0.01 else f"${dollars:.5f}"


def carbon(tons: float) -> str:
    return f"{tons:,.2f} t" if tons >= 0.1 else f"{tons * 1e6:,.2f} g"


class CostCalculator(Explorer):
    """Sliders for every assumption; the report's run and this lab's side by side."""

    def __init__(self, lab: Finished):
        self.lab = lab
        box, intensity = wide("340px"), round(implied_intensity(), 4)

        def assumed(words: str, value: float, low: float, high: float, step: float, form: str = ".2f") -> w.FloatSlider:
            return slider(words, value, low, high, step, "340px", readout_format=form)

        self.size = dropdown("model of table 2", [*TABLE_2, ALL], ALL, "340px")
        hours, watts = hours_and_watts(ALL)
        self.hours = w.BoundedFloatText(hours, min=0, max=1e12, description="GPU hours", **box)
        self.watts = assumed("power of a GPU, W", watts, 100, 1000, 0.1, ".0f")
        self.pue = assumed("PUE of the building", 1.0, 1.0, 2.0, 0.01)
        self.intensity = assumed("carbon intensity, kg a kWh", intensity, 0.0, 1.0, 0.0001, ".4f")
        self.price = assumed("dollars a GPU hour", 1.5, 0.0, 10.0, 0.1)
        self.comparisons = w.BoundedIntText(COMPARISONS, min=0, max=10**12, description="preference comparisons", **box)
        self.each = assumed("dollars a comparison", round(LAMBERT[1][1] * 1e6 / COMPARISONS, 1), 0.0, 30.0, 0.1)
        self.laptop = assumed("power of this laptop, W", 30.0, 5, 200, 1, ".0f")
        self.kwh_price = assumed("dollars a kWh at home", 0.3, 0.0, 1.0, 0.01)
        self.size.observe(self._pick, "value")
        model, energy = (self.size, self.hours), (self.watts, self.pue, self.intensity)
        money = (self.price, self.comparisons, self.each)
        super().__init__("Cost and energy calculator", [*model, *energy, *money, self.laptop, self.kwh_price])

    def _pick(self, _: Any) -> None:
        self.hours.value, self.watts.value = hours_and_watts(self.size.value)

    def draw(self) -> str:
        set_above = (self.hours, self.watts, self.pue, self.intensity, self.price, self.comparisons, self.each)
        big = costs(*(control.value for control in set_above))
        own = lab_costs(self.lab, self.laptop.value, self.intensity.value, self.kwh_price.value, self.each.value)
        size = self.size.value
        printed = f"{REPORTED_TONS:g} tCO2eq in total" if size == ALL else f"{TABLE_2[size][2]:g} tCO2eq for {size}"
        rows = [
            ("hours of computing", f"{self.hours.value:,.0f}", f"{total_seconds(self.lab.figures) / 3600:.2f}"),
            ("energy", f"{big.kwh / 1000:,.1f} MWh", f"{own.kwh * 1000:,.1f} Wh"),
            ("carbon (CO2eq)", carbon(big.tons), carbon(own.tons)),
            ("computing", money(big.compute), money(own.compute)),
            ("comparisons", f"{self.comparisons.value:,}", f"{lab_comparisons(self.lab):,}"),
            ("comparisons by people", money(big.data), f"{money(own.data)} (here simulated: none paid)"),
            ("comparisons by people, share of all costs", share(big), share(own)),
        ]
        return table(("", "as set above", "this lab's run"), rows) + (
            f"<p>The report's table 2 prints {printed}; with PUE 1 and {implied_intensity():.4f} kg a kWh the "
            "calculator gives it again. Prices, PUE and the laptop's power are assumptions: yours to set.</p>"
        )


def share(of: Costs) -> str:
    return number(of.data / of.total) if of.total > 0 else "-"
