"""Ghost Attention's experiments on tiny settings: what they measure has the shape that the notebook shows."""

from llama2lab.lessons.n09_gatt import experiments as e


def test_live_obedience(lab) -> None:
    found = e.live_obedience(lab, dialogues=2, turns=2)
    assert set(found) == {"rlhf-v3", "gatt"}
    assert [f["n"] for f in found["gatt"]["turns"]] == [2, 2]
    assert len(found["gatt"]["dialogues"][0]["answers"]) == 2


def test_attention_by_turn(lab) -> None:
    found = e.attention_by_turn(lab, dialogues=2, turns=3)
    assert len(found["even"]) == 3 and len(found["gatt"]["max"]) == 3
    assert all(f["mean"] >= m["mean"] for f, m in zip(found["gatt"]["max"], found["gatt"]["mean"], strict=True))


def test_long_dialogues_are_the_same_for_all(lab) -> None:
    found = e.long_dialogues(lab, stages=("rlhf-v3", "gatt"), dialogues=3, turns=4)
    (words, gap), *more = found["claims"].items()
    assert "turn 4" in words and not more and gap["n"] == 3
    at_4 = [found[stage][3]["mean"] for stage in ("gatt", "rlhf-v3")]
    assert abs(gap["mean"] - (at_4[0] - at_4[1])) < 1e-9


def test_unseen_instructions_are_not_trained_ones(lab) -> None:
    from llama2lab.town.prompts import instructions_of

    found = e.unseen_instructions(lab, stages=("gatt",), each=1, turns=1)
    trained = {i.text for i in instructions_of(lab.town, "train")}
    assert found["instructions"] and not trained & set(found["instructions"])


def test_mask_ablation_learns_with_two_masks(lab, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(e, "sft", lambda model, tokenizer, rows, *_: seen.append({row["loss"] for row in rows}))
    found = e.mask_ablation(lab, dialogues=2, rows=4, turns=2, tested=2)
    assert seen == [{"last"}, {"all"}] and set(found) == {"before", "last", "all"}
