"""A hook for the conftest files: a skip is a failure where `SPIRA_NO_SKIPS` names one of the test's markers.

CI must not go green on real parts that were not tried.
"""

import os

import pytest

NO_SKIPS = set(os.environ.get("SPIRA_NO_SKIPS", "").split())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    if report.skipped and NO_SKIPS & {mark.name for mark in item.iter_markers()}:
        report.outcome = "failed"
        report.longrepr = f"skipped, but SPIRA_NO_SKIPS forbids that: {report.longrepr}"
    return report
