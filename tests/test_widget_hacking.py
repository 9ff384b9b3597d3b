"""The reward-hacking theatre: its curves, its words, its controls."""

from llama2lab.lessons.n08_ppo.widget_hacking import HackingTheatre, answers_at, parting, verdict


def figure(mean, half=0.1):
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": 50}


def row(i, proxy, truth, answer="Sure."):
    return {
        "iteration": i,
        "kl": 1.0 * i,
        "length": 20.0,
        "proxy": figure(proxy),
        "truth": figure(truth),
        "answers": [{"question": "Who?", "answer": f"{answer} {i}", "truth": truth}],
    }


HACKED = [row(0, 0.0, 1.0), row(1, 1.0, 1.5), row(2, 2.0, 0.2, "<b>Good day!</b>")]
HONEST = [row(0, 0.0, 1.0), row(1, 1.0, 1.5)]


def test_curves_are_changes_since_the_start_on_one_scale():
    curves = parting(HACKED)
    assert curves["proxy"][0] == (1, 0.0) and curves["truth"][0] == (1, 0.0)
    assert curves["proxy"][2][1] > 0 > curves["truth"][2][1]
    assert abs(curves["truth"][1][1] - 0.5 / (0.2 / 3.92)) < 1e-9  # in standard errors of the start
    assert parting([]) == {"proxy": [], "truth": []}


def test_words_follow_the_figures():
    assert "hacked" in verdict(HACKED)
    assert "both rise" in verdict(HONEST)
    assert "over-optimised" in verdict([row(0, 0.0, 1.0), row(1, 1.0, 2.0), row(2, 2.0, 1.2)])
    assert "not clearly risen" in verdict([row(0, 0.0, 1.0), row(1, 0.01, 1.0)])
    assert "short" in verdict(HACKED[:1])


def test_the_step_and_the_run_change_what_is_seen():
    theatre = HackingTheatre({"few pairs": HACKED, "all pairs": HONEST})
    at_end = theatre.picture.value
    assert "iteration 3" in at_end.lower() and "hacked" in at_end
    theatre.step.value = 1
    assert theatre.picture.value != at_end and "Iteration 1" in theatre.picture.value
    theatre.which.value = "all pairs"
    assert theatre.step.max == theatre.film.max == theatre.step.value == 2
    assert "both rise" in theatre.picture.value


def test_answers_of_models_are_escaped():
    assert answers_at(HACKED, 2) == [("Who?", "Sure. 0", 1.0, "<b>Good day!</b> 2", 0.2)]
    page = HackingTheatre({"few pairs": HACKED}).static()
    assert "<b>" not in page and "&lt;b&gt;Good day!" in page
