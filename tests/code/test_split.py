from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spira_train.split import SPLITS, pseudonym, split_of

SUBJECTS = [pseudonym(f"subject {number}", "salt") for number in range(4000)]


def place(subjects: list[str], validation: float = 0.15, test: float = 0.25, salt: str = "spira") -> dict[str, str]:
    return {subject: split_of(subject, salt, validation, test) for subject in subjects}


@given(st.permutations(SUBJECTS[:60]), st.integers(0, 60))
def test_neither_order_nor_company_matters(order: list[str], count: int) -> None:
    everyone = place(SUBJECTS[:60])
    assert place(order[:count]) == {subject: everyone[subject] for subject in order[:count]}


def test_the_answer_is_frozen() -> None:
    # Golden values: were they to change, subjects of the frozen test set would be trained on.
    drawn = [split_of(subject, "spira", 0.15, 0.25) for subject in SUBJECTS[:6]]
    assert drawn == ["test", "train", "train", "validation", "train", "validation"]
    assert pseudonym("a", "spira") == "ec084b7d28b53068"


def test_shares_are_as_asked() -> None:
    counts = Counter(place(SUBJECTS).values())
    assert set(counts) == set(SPLITS)
    assert counts["test"] / len(SUBJECTS) == pytest.approx(0.25, abs=0.03)
    assert counts["validation"] / len(SUBJECTS) == pytest.approx(0.15, abs=0.03)


def test_another_salt_is_another_split() -> None:
    assert place(SUBJECTS, salt="spira") != place(SUBJECTS, salt="other")
    assert pseudonym("a", "spira") != pseudonym("a", "other")


@given(st.floats(0.01, 0.4), st.floats(0.01, 0.5))
def test_a_larger_test_share_lets_nobody_out(test: float, more: float) -> None:
    before, after = place(SUBJECTS[:100], 0.05, test), place(SUBJECTS[:100], 0.05, test + more)
    assert all(after[subject] == "test" for subject in before if before[subject] == "test")
