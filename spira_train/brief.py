"""What a human reads before approving: the report's first screen as Markdown, for Airflow's page."""

from collections.abc import Mapping
from typing import Any

Facts = Mapping[str, Any]
# What an approver compares: row -> (metric, what it counts)
_ROWS = {"patients named": "sensitivity", "controls cleared": "specificity", "right answers": "accuracy"}


def brief(found: Facts, verdict: Facts, drifted: Facts, *, simulated: bool) -> str:
    """The verdict, the main figures with 95 % intervals, what is not proven, drift, and the champion, in words.

    found, verdict, drifted: as `validate` writes them. Says what it cannot say where something was not measured.
    """
    metrics, counts = found.get("metrics", {}), verdict["test_set"]
    kept = sum(check["passed"] for check in verdict["checks"])
    parts = [f"**The gate {verdict['verdict']} this model**: {kept} of {len(verdict['checks'])} promises kept."]
    if simulated:
        parts.append(
            "**Simulated voices.** These figures show that the pipeline works; they say nothing about patients."
        )
    if clean := metrics.get("clean"):
        parts += [_table(clean, metrics.get("ward_noise") or {}), _sentence(clean, counts)]
    else:
        parts.append("Nothing could be measured on the test set.")
    if unproven := verdict.get("unproven"):
        groups = ", ".join(text.rpartition(": ")[0] for text in unproven)
        count = f"{len(unproven)} group{'s' * (len(unproven) > 1)}"
        parts.append(f"**Not proven** for {count} of people, too few of whom were recorded: {groups}.")
    if moved := [finding["text"] for finding in drifted.get("findings", []) if finding["drifted"]]:
        parts.append(f"**Drift**: {'; '.join(moved)}.")
    parts.append(_against(found.get("champion"), verdict.get("champion")))
    return "\n\n".join(parts) + "\n"


def _table(clean: Facts, ward: Facts) -> str:
    lines = ["| of 100 | as recorded | in ward noise |", "|---|---|---|"]
    lines += [
        f"| {words} | {_hundred(clean.get(name))} | {_hundred(ward.get(name))} |" for words, name in _ROWS.items()
    ]
    return "\n".join(lines)


def _sentence(clean: Facts, counts: Facts) -> str:
    auc, undecided = clean.get("auc"), clean.get("inconclusive")
    said = f"AUC {auc['value']:.2f} ({auc['low']:.2f} to {auc['high']:.2f}). " if auc else ""
    said += f"{round(100 * undecided['value'])} of 100 answers are inconclusive. " if undecided else ""
    return (
        f"{said}Test set: {counts['controls']} controls, {counts['patients']} patients. In parentheses: 95 % intervals."
    )


def _against(compared: Facts | None, version: str | None) -> str:
    if not version:
        return "There is no champion: this would be the first model that is served."
    if not (clean := (compared or {}).get("clean")):
        return f"It could not be compared with the champion `{version}`."
    gain = clean.get("auc_gain")
    said = f"AUC {gain['value']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f}, 90 %), " if gain else ""
    said += f"{clean['won']} recordings right that it has wrong, {clean['lost']} the other way round"
    return f"**Against the champion** `{version}`, on the same recordings: {said}."


def _hundred(found: Facts | None) -> str:
    if not found:
        return "not measured"
    value, low, high = (round(100 * found[end]) for end in ("value", "low", "high"))
    return f"{value} ({low} to {high})"
