"""The queue: overlap is exact, nobody gets an item twice, leases run out, and what was pressed is what is stored."""

import time
from collections import Counter
from dataclasses import asdict

import psutil
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from test_annotation_store import pairs

from llama2lab.annotation.files.adding import add_pairs
from llama2lab.annotation.store import queue
from llama2lab.annotation.store import tables as t
from llama2lab.annotation.store.store import open_store
from llama2lab.engine.errors import LabError


@pytest.fixture
def store(store_url):
    with open_store(store_url) as opened:
        yield opened


def answer(store, who, count=1, side="left", **more):
    """Label the next items; their ids."""
    done = []
    for _ in range(count):
        task = queue.next_task(store, who, **more)
        queue.submit(store, who, task.item_id, side, "better", True, True)
        done.append(task.item_id)
    return done


def test_overlap_is_exact_and_nobody_gets_an_item_twice(store):
    add_pairs(store, pairs(5), overlap=2)
    given = Counter()
    for name in ("Anna", "Bert", "Cyd"):
        who, mine = store.annotator(name), []
        while task := queue.next_task(store, who):
            queue.submit(store, who, task.item_id, "left", "better")
            mine.append(task.item_id)
        assert len(mine) == len(set(mine))
        given.update(mine)
    assert set(given.values()) == {2} and len(given) == 5
    assert len(store.labels()) == 10


def test_a_task_shows_nothing_that_an_annotator_must_not_see(store):
    add_pairs(store, pairs(1, models=["secret-sft", "secret-base"], gold={"choice": 1}, meta={"secret": "x"}))
    me, other = store.annotator("Anna"), store.annotator("Bert")
    answer(store, other)
    task = queue.next_task(store, me)
    assert set(asdict(task)) == {
        "item_id",
        "kind",
        "prompt",
        "left_text",
        "right_text",
        "number",
        "leased_until",
        "prompt_id",
    }
    assert "secret" not in repr(task) and "gold" not in repr(task)


def test_the_unfinished_item_comes_again_with_the_same_sides(store_url):
    with open_store(store_url) as store:
        add_pairs(store, pairs(10))
        me = store.annotator("Anna")
        answer(store, me, 3)
        task = queue.next_task(store, me, seed=1)
    with open_store(store_url) as again:  # as after a restart of the kernel, with another seed
        same = queue.next_task(again, me, seed=2)
        assert (same.item_id, same.left_text, same.number) == (task.item_id, task.left_text, 4)
        assert same.leased_until >= task.leased_until


def test_order_and_sides_follow_the_seed(tmp_path, postgres):
    def shown(url, seed):
        with open_store(url) as store:
            add_pairs(store, pairs(40), seed=seed)
            me, seen = store.annotator("Anna"), []
            for _ in range(40):
                task = queue.next_task(store, me, seed=seed)
                queue.submit(store, me, task.item_id, "left", "better")
                seen.append((task.prompt[0]["content"], task.left_text))
            return seen

    one = shown(tmp_path / "one.db", 1)
    assert one == shown(tmp_path / "again.db", 1)
    assert one == shown(postgres.create("seeded"), 1)  # the server draws as Python does
    assert one != shown(tmp_path / "two.db", 2)
    assert [q for q, _ in one] != [f"Question {n}?" for n in range(40)]
    lefts = sum(text.startswith("Another") for _, text in one)
    assert 10 <= lefts <= 30


def test_an_expired_lease_goes_to_the_next_and_comes_back_to_nobody(store):
    add_pairs(store, pairs(1))
    anna, bert = store.annotator("Anna"), store.annotator("Bert")
    task = queue.next_task(store, anna, lease_seconds=0.05)
    assert queue.progress(store, anna).open == 1
    time.sleep(0.1)
    assert queue.next_task(store, bert).item_id == task.item_id
    with pytest.raises(LabError, match="went to somebody else"):
        queue.submit(store, anna, task.item_id, "left", "better")
    assert not queue.renew(store, anna, task.item_id)
    queue.submit(store, bert, task.item_id, "right", "better")
    assert queue.next_task(store, anna) is None
    assert [label["annotator"] for label in store.labels()] == ["Bert"]


def test_a_late_answer_counts_while_nobody_else_has_the_item(store):
    add_pairs(store, pairs(1))
    anna, bert = store.annotator("Anna"), store.annotator("Bert")
    task = queue.next_task(store, anna, lease_seconds=0.01)
    time.sleep(0.05)
    queue.submit(store, anna, task.item_id, "left", "better")
    assert queue.next_task(store, bert) is None


def test_a_renewed_lease_is_kept(store):
    add_pairs(store, pairs(1))
    anna, bert = store.annotator("Anna"), store.annotator("Bert")
    task = queue.next_task(store, anna, lease_seconds=0.05)
    assert queue.renew(store, anna, task.item_id, 60)
    time.sleep(0.1)
    assert queue.next_task(store, bert) is None


@pytest.mark.parametrize("seed", range(4))
def test_labels_are_of_the_items_answers_and_history_is_of_the_sides(store, seed):
    add_pairs(store, pairs(1, kind="safety"))
    me = store.annotator("Anna")
    task = queue.next_task(store, me, seed=seed)
    queue.submit(
        store,
        me,
        task.item_id,
        "right",
        "slightly",
        safe_left=False,
        safe_right=True,
        comment="c",
        flag=True,
        seconds=2.5,
        label_id="mine",
    )
    (label,) = store.labels()
    chosen = label["answers"][label["choice"] - 1]
    assert chosen == task.right_text and label["answers"][label["left"] - 1] == task.left_text
    assert (label["safe_1"], label["safe_2"]) == ((True, False) if label["choice"] == 1 else (False, True))
    (past,) = queue.history(store, me)
    given = past.label
    assert (given.side, given.grade, given.safe_left, given.safe_right) == ("right", "slightly", False, True)
    assert (given.comment, given.flag, given.seconds, given.label_id) == ("c", True, 2.5, "mine")
    assert (past.task.left_text, past.task.right_text) == (task.left_text, task.right_text)
    assert abs((t.now() - label["created_at"]).total_seconds()) < 600


def test_an_edit_is_a_new_row_and_the_old_one_stays(store):
    add_pairs(store, pairs(3))
    me = store.annotator("Anna")
    first = answer(store, me, 3)
    queue.submit(store, me, first[0], "right", "slightly", label_id="edit1")
    queue.skip(store, me, first[0], "cannot say", label_id="edit2")
    queue.submit(store, me, first[0], "right", "negligibly", label_id="edit3")
    past = queue.history(store, me)
    assert [p.task.item_id for p in past] == first and [p.task.number for p in past] == [1, 2, 3]
    assert (past[0].label.label_id, past[0].label.grade) == ("edit3", "negligibly")
    assert len(store.labels()) == 3 and queue.progress(store, me) == queue.Progress(3, 0, 0)
    with store.begin() as conn:
        rows = conn.execute(sa.select(t.labels.c.id, t.labels.c.supersedes).where(t.labels.c.item_id == first[0])).all()
    chain = {new: old for new, old in rows}
    assert len(rows) == 4 and chain["edit3"] == "edit2" and chain["edit2"] == "edit1" and chain["edit1"] in chain


def test_saving_again_makes_no_second_label(store):
    add_pairs(store, pairs(2))
    me, other = store.annotator("Anna"), store.annotator("Bert")
    task = queue.next_task(store, me)
    for _ in range(3):
        assert queue.submit(store, me, task.item_id, "left", "better", label_id="one") == "one"
    assert len(store.labels()) == 1
    with pytest.raises(LabError, match="another label's"):
        queue.submit(store, me, queue.next_task(store, me).item_id, "left", "better", label_id="one")
    for odd in ("a\x00b", "\ud800", "x" * 100):
        with pytest.raises(LabError, match="not yours"):
            queue.submit(store, me, odd, "left", "better")
    with pytest.raises(LabError, match="not yours"):
        queue.submit(store, other, task.item_id, "left", "better", label_id="one")
    with pytest.raises(LabError, match="letters"):
        queue.submit(store, me, task.item_id, "left", "better", label_id="x y")


def test_a_skip_counts_as_given_and_keeps_its_reason_flag_and_comment(store):
    add_pairs(store, pairs(1))
    me, other = store.annotator("Anna"), store.annotator("Bert")
    task = queue.next_task(store, me)
    with pytest.raises(LabError, match="reason"):
        queue.skip(store, me, task.item_id, " ")
    queue.skip(store, me, task.item_id, "upsetting", comment="c", flag=True, seconds=1.5)
    (label,) = store.labels()
    assert (label["choice"], label["grade"], label["skip_reason"], label["flag"]) == (None, None, "upsetting", True)
    assert queue.progress(store, me) == queue.Progress(0, 1, 0)
    assert queue.next_task(store, other) is None
    assert queue.history(store, me)[0].label.side is None


def test_the_reports_rule_on_safety_labels(store):
    add_pairs(store, pairs(1, kind="safety"))
    me = store.annotator("Anna")
    task = queue.next_task(store, me)
    with pytest.raises(LabError, match="mark both"):
        queue.submit(store, me, task.item_id, "left", "better", safe_left=True)
    for side, left, right in (("left", False, True), ("right", True, False)):
        with pytest.raises(LabError, match="never kept"):
            queue.submit(store, me, task.item_id, side, "better", left, right)
    assert store.labels() == []
    queue.submit(store, me, task.item_id, "left", "better", False, False)
    assert len(store.labels()) == 1


def test_a_helpfulness_label_may_choose_the_unsafe_answer_and_leave_marks_out(store):
    add_pairs(store, pairs(2))
    me = store.annotator("Anna")
    queue.submit(store, me, queue.next_task(store, me).item_id, "left", "better", False, True)
    queue.submit(store, me, queue.next_task(store, me).item_id, "left", "better")
    assert len(store.labels()) == 2


@pytest.mark.parametrize("wrong", [{"side": "middle"}, {"grade": "best"}, {"seconds": -1.0}, {"seconds": float("nan")}])
def test_labels_that_are_none(store, wrong):
    add_pairs(store, pairs(1))
    me = store.annotator("Anna")
    task = queue.next_task(store, me)
    with pytest.raises(LabError):
        queue.submit(store, me, task.item_id, **{"side": "left", "grade": "better", **wrong})
    with pytest.raises(LabError, match="no annotator"):
        queue.next_task(store, "nobody")


def test_gold_goes_to_everybody_and_its_outcomes_follow_the_labels_in_force(store):
    add_pairs(store, pairs(4, gold={"choice": 1}) + pairs(6, start=10))
    for name in ("Anna", "Bert"):
        me = store.annotator(name)
        assert queue.progress(store, me).open == (10 if name == "Anna" else 4)
        wanted = [True, False, True, None]
        for agree in wanted:
            task = queue.next_task(store, me, gold_first=True)
            assert int(task.prompt[0]["content"].split()[1][:-1]) < 4
            first_is_left = task.left_text.startswith("Answer")
            if agree is None:
                queue.skip(store, me, task.item_id, "cannot say")
            else:
                queue.submit(store, me, task.item_id, "left" if first_is_left == agree else "right", "better")
        found = queue.qualify(store, me)
        assert found.outcomes == (True, False, True, False) and (found.done, found.agreed, found.wanted) == (4, 2, 4)
        past = queue.history(store, me)[1]
        queue.submit(store, me, past.task.item_id, "right" if past.label.side == "left" else "left", "better")
        assert queue.qualify(store, me).outcomes == (True, True, True, False)
        if name == "Anna":
            answer(store, me, 6)
        assert queue.next_task(store, me) is None


def test_gold_may_ask_for_grades_and_safety_marks(store):
    gold = {"choice": 1, "grades": ["better", "significantly"], "safe_1": True, "safe_2": False}
    add_pairs(store, pairs(1, kind="safety", gold=gold))
    outcomes = []
    for name, grade, safe_2 in (("A", "better", False), ("B", "slightly", False), ("C", "better", True)):
        me = store.annotator(name)
        task = queue.next_task(store, me)
        first_is_left = task.left_text.startswith("Answer")
        marks = (True, safe_2) if first_is_left else (safe_2, True)
        queue.submit(store, me, task.item_id, "left" if first_is_left else "right", grade, *marks)
        outcomes += queue.qualify(store, me, kind="safety").outcomes
        assert queue.qualify(store, me, kind="helpfulness") == queue.Qualification((), 0)
    assert outcomes == [True, False, False]


def test_gold_is_spread_among_the_other_items_and_numbered_without_gaps(store):
    add_pairs(store, pairs(10, gold={"choice": 2}) + pairs(30, start=10))
    me = store.annotator("Anna")
    kinds = []
    for number in range(1, 41):
        task = queue.next_task(store, me)
        assert task.number == number
        kinds.append(int(task.prompt[0]["content"].split()[1][:-1]) < 10)
        queue.submit(store, me, task.item_id, "left", "better")
    assert sum(kinds) == 10 and not all(kinds[:10])


def test_one_kind_only(store):
    add_pairs(store, pairs(3) + pairs(2, kind="safety", start=10))
    me = store.annotator("Anna")
    assert [queue.progress(store, me, kind=k).open for k in (None, "helpfulness", "safety")] == [5, 3, 2]
    assert [queue.next_task(store, me, kind="safety").kind for _ in range(2)] == ["safety", "safety"]
    answer(store, me, 2, kind="safety")
    assert queue.next_task(store, me, kind="safety") is None
    assert queue.progress(store, me, kind="safety") == queue.Progress(2, 0, 0)
    answer(store, me, 3, kind="helpfulness")
    assert queue.next_task(store, me) is None


def cpu_seconds(server):
    """What this process and the database's server have computed since they began; waiting and pauses are not in it."""
    total = time.process_time()
    if server:
        first = psutil.Process(int((server.folder / "data" / "postmaster.pid").read_text().split()[0]))
        total += sum(sum(process.cpu_times()[:4]) for process in (first, *first.children()))  # and of those that ended
    return total


def test_ten_thousand_items_stay_fast(store, request):
    add_pairs(store, pairs(10_000) + pairs(20, start=10_000, gold={"choice": 1}), overlap=3)
    me = store.annotator("Anna")
    with store.begin() as conn:  # a diligent annotator: the first 5,000 items are theirs, and still wanted by others
        conn.execute(
            sa.text(
                "UPDATE slots SET annotator_id = :me, \"left\" = 1, state = 'done' "
                "WHERE number = 1 AND position <= 5000"
            ),
            {"me": me},
        )
    server = None if store.sqlite else request.getfixturevalue("postgres")
    start = cpu_seconds(server)
    for _ in range(20):
        task = queue.next_task(store, me)
        queue.submit(store, me, task.item_id, "left", "better")
        queue.progress(store, me)
    assert (cpu_seconds(server) - start) / 20 < 0.5  # it is about 0.03


class Crowd(RuleBasedStateMachine):
    """Any sequence of claims, labels, skips, edits and vanished holders."""

    def __init__(self):
        super().__init__()
        self.store = open_store(self.url())
        add_pairs(self.store, pairs(6) + pairs(1, start=50, gold={"choice": 1}), overlap=2)
        self.people = [self.store.annotator(name) for name in ("Anna", "Bert", "Cyd")]
        self.answered = {}  # (person, item) -> the label in force
        self.rows = 0
        self.held = {}

    def url(self):
        raise NotImplementedError

    def teardown(self):
        self.store.close()

    @rule(who=st.integers(0, 2), lease=st.sampled_from([900.0, -1.0]), gold_first=st.booleans())
    def claim(self, who, lease, gold_first):
        task = queue.next_task(self.store, self.people[who], lease_seconds=lease, gold_first=gold_first)
        if task is not None:
            assert (who, task.item_id) not in self.answered
            self.held.setdefault(who, []).append(task.item_id)

    @precondition(lambda self: any(self.held.values()))
    @rule(data=st.data(), side=st.sampled_from(["left", "right", None]))
    def give(self, data, side):
        who = data.draw(st.sampled_from([w for w, items in self.held.items() if items]))
        item = self.held[who].pop()
        self._save(who, item, side)

    @precondition(lambda self: self.answered)
    @rule(data=st.data(), side=st.sampled_from(["left", "right", None]))
    def edit(self, data, side):
        who, item = data.draw(st.sampled_from(sorted(self.answered)))
        assert self._save(who, item, side)

    def _save(self, who, item, side):
        try:
            if side is None:
                queue.skip(self.store, self.people[who], item, "no")
            else:
                queue.submit(self.store, self.people[who], item, side, "better")
        except LabError as e:
            assert "went to somebody else" in str(e)
            return False
        self.answered[who, item] = side
        self.rows += 1
        return True

    @invariant()
    def nothing_is_lost_and_overlap_is_kept(self):
        with self.store.begin(read=True) as conn:
            slots = conn.execute(sa.select(t.slots, t.items.c.overlap).join(t.items)).all()
            assert conn.execute(sa.select(sa.func.count()).select_from(t.labels)).scalar() == self.rows
        for item in {s.item_id for s in slots}:
            mine = [s for s in slots if s.item_id == item]
            if mine[0].overlap:
                assert len(mine) == mine[0].overlap
            holders = [s.annotator_id for s in mine if s.annotator_id]
            assert len(holders) == len(set(holders))
        state = {"left": "done", "right": "done", None: "skipped"}
        assert {(s.annotator_id, s.item_id): s.state for s in slots if s.state in ("done", "skipped")} == {
            (self.people[who], item): state[side] for (who, item), side in self.answered.items()
        }
        assert len(self.store.labels()) == len(self.answered)
        for number, who in enumerate(self.people):
            past = {p.task.item_id: p.label.side for p in queue.history(self.store, who)}
            assert past == {item: side for (w, item), side in self.answered.items() if w == number}


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_any_sequence_of_claims_answers_edits_and_expiries(database, tmp_path, request):
    numbers = iter(range(10**6))
    server = request.getfixturevalue("postgres") if database == "postgresql" else None

    class Here(Crowd):
        def url(self):
            if server:
                return server.create(f"crowd{next(numbers)}")
            return str(tmp_path / f"{next(numbers)}.db")

    few = settings(max_examples=8, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck))
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(Here, settings=few)
