"""What an approver reads on Airflow's page: words and figures, never a dictionary or `None`."""

from spira_train.brief import brief


def proportion(value: float) -> dict:
    return {"value": value, "low": value - 0.1, "high": min(value + 0.05, 1.0)}


CLEAN = {name: proportion(0.9) for name in ("sensitivity", "specificity", "accuracy", "auc")}
CLEAN |= {"inconclusive": proportion(0.2)}
VERDICT = {
    "verdict": "blessed",
    "checks": [{"passed": True}] * 61,
    "test_set": {"controls": 36, "patients": 47, "digest": "0"},
    "unproven": ["age: under 40: 9 controls and 7 patients, too few of one class to tell them apart"],
    "champion": None,
}


def test_verdict_figures_and_what_is_not_proven():
    found = {"metrics": {"clean": CLEAN, "ward_noise": CLEAN | {"sensitivity": proportion(0.75)}}}
    said = brief(found, VERDICT, {"findings": []}, simulated=True)
    assert said.startswith("**The gate blessed this model**: 61 of 61 promises kept.\n")
    assert "| patients named | 90 (80 to 95) | 75 (65 to 80) |" in said
    assert "AUC 0.90 (0.80 to 0.95). 20 of 100 answers are inconclusive. Test set: 36 controls, 47 patients." in said
    assert "**Not proven** for 1 groups" not in said
    assert "**Not proven** for 1 group of people, too few of whom were recorded: age: under 40." in said
    assert "**Simulated voices.**" in said
    assert "There is no champion: this would be the first model that is served." in said
    assert "Drift" not in said


def test_the_champion_and_the_drift():
    gain = {"auc_gain": {"value": 0.01, "low": -0.02, "high": 0.04}, "won": 5, "lost": 3}
    found = {"metrics": {"clean": CLEAN}, "champion": {"clean": gain, "version": "v1"}}
    drifted = {"findings": [{"drifted": True, "text": "age is higher"}, {"drifted": False, "text": "sex is as it was"}]}
    said = brief(found, VERDICT | {"champion": "v1", "unproven": []}, drifted, simulated=False)
    assert "**Against the champion** `v1`, on the same recordings: AUC +0.010 (-0.020 to +0.040, 90 %)" in said
    assert "5 recordings right that it has wrong, 3 the other way round." in said
    assert "**Drift**: age is higher." in said
    assert "| right answers | 90 (80 to 95) | not measured |" in said
    assert "Simulated" not in said
    assert "Not proven" not in said


def test_what_could_not_be_measured_is_said():
    verdict = {"verdict": "refused", "checks": [], "test_set": {"controls": 0, "patients": 0}, "champion": "v1"}
    said = brief({}, verdict, {}, simulated=False)
    assert "Nothing could be measured on the test set." in said
    assert "It could not be compared with the champion `v1`." in said
