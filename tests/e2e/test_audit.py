"""The gate's own proof, in its small form: what is bad is refused for the right reason, what is honest is blessed."""

import pytest

from spira_train import audit, config, gate

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> list[audit.Case]:
    plan = gate.read(config.CONFIG_DIR / "gate.yaml")
    return audit.run(tmp_path_factory.mktemp("audit"), plan, preset="fast", small=True)


def test_every_bad_one_is_refused_for_the_right_reason(cases):
    bad = [case for case in cases if case.expected]
    assert len(bad) >= 15
    assert {case.name: case.broken for case in bad if not case.right} == {}


def test_the_honest_one_is_blessed(cases):
    honest = [case for case in cases if not case.expected]
    assert {case.name: case.broken for case in honest if not case.right} == {}
    assert honest


def test_the_table_tells_both(cases):
    table = audit.table(cases)
    assert "| ward detector | trained without noise, every patient in a ward |" in table
    assert "**ward_noise_controls accuracy_drop**" in table
    assert table.count(" yes |") == len(cases)
