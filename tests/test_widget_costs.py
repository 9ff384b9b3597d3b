"""The cost calculator: table 2 comes out again, and sliders change what is shown."""

from types import SimpleNamespace

import pytest

from llama2lab.lessons.n11_evaluation import widget_costs as c

# As much of a finished run as the calculator reads: an hour, and 40 pairs.
RUN = SimpleNamespace(
    figures={
        "stages": {
            "base": {"seconds": 1800.0, "metrics": {}},
            "preferences-v1": {"seconds": 1800.0, "metrics": {"helpfulness": {"pairs": 30}, "safety": {"pairs": 10}}},
        }
    }
)


def test_table_2_comes_out_again() -> None:
    *rows, total = c.report_check(c.implied_intensity())
    for row in rows:
        assert row["tons"] == pytest.approx(row["printed"], rel=1e-3)
    assert total["hours"] == 3_311_616
    assert total["tons"] == pytest.approx(539.0, abs=0.05)


def test_money_energy_and_carbon_by_hand() -> None:
    got = c.costs(1000, 500, 1.2, 0.5, 2.0, 10, 3.0)
    assert (got.kwh, got.tons, got.compute, got.data) == (600.0, 0.3, 2000.0, 30.0)
    assert got.total == 2030.0


def test_all_four_sizes_keep_their_energy() -> None:
    hours, watts = c.hours_and_watts(c.ALL)
    assert hours * watts == pytest.approx(sum(h * p for h, p, _ in c.TABLE_2.values()))


def test_lamberts_figures_differ_a_comparison() -> None:
    each = [float(row[2]) for row in c.lambert_rows()]
    assert len(set(each)) == 3 and max(each) / min(each) > 3


def test_the_lab_counts_its_own_run() -> None:
    own = c.lab_costs(RUN, 40, 0.4, 0.25, 2.0)
    assert c.lab_comparisons(RUN) == 40
    assert own.kwh == pytest.approx(0.04) and own.compute == pytest.approx(0.01) and own.data == 80.0


def test_sliders_change_what_is_shown() -> None:
    widget = c.CostCalculator(RUN)
    assert "539.00 t" in widget.static()
    widget.pue.value = 1.5
    assert "808.50 t" in widget.static()
    widget.size.value = "7B"
    assert widget.hours.value == 184_320 and "46.84 t" in widget.static() and "31.22 tCO2eq for 7B" in widget.static()
    before = widget.static()
    widget.each.value = 20.0
    assert widget.static() != before
