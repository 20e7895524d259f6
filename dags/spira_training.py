"""
# SPIRA continuous training

Retrains the detector of respiratory insufficiency as new recordings arrive, and **never serves a model that has
not earned it**. One run is one partition of the lake: the recordings collected on one day (`YYYY-MM-DD`). Every
night at 03:00 UTC the day before is processed, with the preset that `SPIRA_PRESET` names (`default`).

| task | what it does | how it can end |
|---|---|---|
| `setup` | resolves preset and params into one frozen configuration | fails at once on a wrong value |
| `extract` | checks the recordings, brings them to 16 kHz mono, lists what it refuses | *skipped*: no data that day |
| `features` | MFCC windows, clean and with ward noise | |
| `train` | trains on this and all earlier days | *skipped*: a newer day has landed and trains for all |
| `validate` | measures on the frozen test set, clean and in ward noise, and asks the gate | |
| `verdict` | the gate blessed the model: go on; or it did not: `refused` | |
| `package` | builds the archive and tries it in a sandbox model server | fails when the sandbox refuses |
| `approve` | waits for a human, only where the param `approve` is set | a no, or no answer in time: `rejected` |
| `register` | new version in MLflow, with who approved it, and in TorchServe | publishes `spira/champion` if promoted |
| `verify` | golden recordings through the live server; rolls back on any difference | |
| `rejected` | a human said no, or nobody answered: puts that on record and fails; **the champion goes on serving** | |
| `refused` | the gate said no. The run fails with the reason; **the champion goes on serving** | |

With the param `stage` = `challenger` the new version is held beside the champion, for a shadow or a canary; the event
of the asset says who the champion is.

**Run it** with *Trigger*: choose a partition and a preset, and fill in only the hyper-parameters that should differ
from the preset. **Backfill** prepares each day and trains once, for the newest (`train_each` trains for each).
Repeating a finished run trains nothing and changes no byte.

Tasks that fail for a reason outside (server away, disk full, process killed) are retried; wrong input and a refusal
are not. Each task's operator shows where it runs: a container or a process (`SPIRA_RUNTIME`).
"""

import json
import os
from datetime import timedelta
from pathlib import Path

from airflow.providers.standard.operators.hitl import ApprovalOperator, HITLOperator
from airflow.sdk import DAG, Asset, CronPartitionTimetable, Param, TriggerRule, task
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException
from step import DEFAULTS, partition_of, settings, step

HOUR = timedelta(hours=1)
FORM = json.loads(Path(__file__).with_name("params.json").read_text())
PRESET = os.environ.get("SPIRA_PRESET") or "default"  # of scheduled runs, and of others unless they say otherwise
if PRESET not in FORM["presets"]:
    raise ValueError(f"SPIRA_PRESET is {PRESET!r}; allowed: {', '.join(FORM['presets'])}")
APPROVAL_HOURS = settings(os.environ)["approval_hours"]
RUN = ("--run", "{{ ti.xcom_pull('setup')['run'] }}")
PARTITION = "{{ partition_of(params, partition_key) }}"
SETTINGS = "{{ settings_of(params) }}"
APPROVAL = "{{ approval_of(params, ti.xcom_pull('approve')) }}"
HOLD = "{{ '--hold' if params.get('stage') == 'challenger' else '' }}"
REJECTION = "{{ rejection_of(ti.xcom_pull('approve')) }}"
QUESTION = """
{% set found = ti.xcom_pull('validate') %}{% set champion = found['summary']['champion'] -%}
{{ found['brief'] }}
{% if found.get('report_link') %}[Read the report]({{ mlflow_ui }}/{{ found['report_link'] }}){% else -%}
Report: `{{ found['report_page'] }}`{% endif %}

---

**Approve**: your name and the time go into the registry with the model, and \
{% if params.get('stage') == 'challenger' %}it is loaded beside the champion; it answers nobody{% else -%}
it answers every request from then on{% endif %}.

**Reject**: your name and the time are kept, nothing is registered, and \
{% if champion %}`{{ champion }}` goes on serving{% else %}nothing is served{% endif %}. The run ends as refused.

**No answer in {{ approval_hours }} hours** counts as a no.
"""


def field(name: str, spec: dict) -> Param:
    """A hyper-parameter in the form: typed, bounded, and unset for "as the preset says"."""
    limits = {k: v for k, v in spec.items() if k not in ("type", "description", "enum", "presets")}
    enum = {"enum": [None, *spec["enum"]], "values_display": {"null": "as the preset says"}} if "enum" in spec else {}
    preset = ", ".join(f"{preset} {json.dumps(value)}" for preset, value in spec["presets"].items())
    group, dot, _ = name.partition(".")
    section = {"section": group.capitalize()} if dot else {}  # what has none stands first, unfolded
    # Airflow draws a boolean as a switch, which cannot be empty; as a drop-down it would be sent, but not shown.
    unset = "Untouched" if spec["type"] == "boolean" else "Empty"
    text = f"{spec['description']}. {unset}: as the preset says ({preset})"
    return Param(None, text, type=["null", spec["type"]], title=name, **section, **limits, **enum)


OWN = {
    "partition": Param(
        None,
        "Collection day to process. Empty: the run's own partition key",
        type=["null", "string"],
        format="date",
    ),
    "preset": Param(PRESET, "Configuration file to start from", enum=FORM["presets"], type="string"),
    "stage": Param(
        "champion",
        "What a blessed model becomes. challenger: it is loaded beside the champion and answers nobody, for a shadow "
        "or a canary of the gateway; the same run with champion promotes it",
        type="string",
        enum=["champion", "challenger"],
    ),
    "approve": Param(False, "Ask a human before the new model is registered", type="boolean"),
}


def settings_of(params: dict) -> str:
    """What differs from the preset, as words of `spira-train setup`; it refuses names that it does not know."""
    chosen = {name: value for name, value in params.items() if name not in OWN and value is not None}
    return "\n".join(f"--set={name}={json.dumps(value)}" for name, value in chosen.items())


def approval_of(params: dict, answer: dict | None) -> str:
    """Who said yes, and when, as words of `spira-train register`; none where nobody had to be asked.

    answer: what the task `approve` gave: `responded_by_user` {id, name}, `responded_at` (a time, or its ISO form).
    """
    if not params["approve"]:
        return ""
    user = (answer or {}).get("responded_by_user")
    if not user or answer["chosen_options"] != [ApprovalOperator.APPROVE]:
        raise AirflowFailException("the param `approve` is on, but no human's yes is on record; clear `approve`")
    name, at = who_and_when(answer)
    return f"--approver={name}\n--approved-at={at}"


def rejection_of(answer: dict | None) -> str:
    """Who said no, and when, as words of `spira-train reject`; none where nobody answered in time."""
    if not answer or answer["chosen_options"] != [ApprovalOperator.REJECT]:
        raise AirflowFailException("no human's no is on record; clear `approve`")
    name, at = who_and_when(answer)
    return f"--by={name}\n--at={at}" if name else ""


def who_and_when(answer: dict) -> tuple[str, str]:
    """Name (empty: nobody) and time of an answer, each on one line: a line is a word."""
    user, at = answer.get("responded_by_user") or {}, answer.get("responded_at") or ""
    name = " ".join((user.get("name") or user.get("id") or "").split())
    return name, at if isinstance(at, str) else at.isoformat()


@task.branch
def verdict(ti=None):
    """Go on with a blessed model; anything else is refused."""
    return "package" if ti.xcom_pull("validate")["outcome"] == "done" else "refused"


@task(retries=0)
def refused(ti=None):
    """The run's way of saying it: the gate refused the model, and the champion goes on serving."""
    result = ti.xcom_pull("validate")
    print("The gate refused this model, so the champion goes on serving. Its reasons:")
    print(*(f"- {reason}" for reason in result["summary"]["reasons"]), f"Report: {result['report_page']}", sep="\n")
    raise AirflowFailException(result["message"])


class Approval(ApprovalOperator):
    """Asks a human where the param `approve` says so; is skipped at once where it does not.

    A no, and no answer in time, lead to `rejected`, a task that fails and says so: the run must not look well.
    """

    custom_operator_name = "approval"

    def execute(self, context):
        if not context["params"]["approve"]:
            raise AirflowSkipException("the param `approve` is off: no human is asked")
        return super().execute(context)

    def execute_complete(self, context, event):
        if event.get("error_type") == "timeout":
            answer = {"chosen_options": [self.REJECT], "responded_by_user": None, "responded_at": None}
        else:
            answer = HITLOperator.execute_complete(self, context, event)
        yes = answer["chosen_options"] == [self.APPROVE]
        not_taken = "rejected" if yes else "register"
        context["ti"].xcom_push(key="return_value", value=answer)  # `skip` raises, so what is returned would be lost
        self.skip(ti=context["ti"], tasks=[task for task in self.downstream_list if task.task_id == not_taken])


with DAG(
    "spira_training",
    description="From the recordings of a day to a model that has earned to be served",
    doc_md=__doc__,
    schedule=CronPartitionTimetable(
        "0 3 * * *", timezone="UTC", run_offset=-1, key_format="%Y-%m-%d", run_immediately=True
    ),
    catchup=False,
    max_active_runs=1,
    params=OWN | {name: field(name, spec) for name, spec in FORM["fields"].items()},
    default_args=DEFAULTS,
    user_defined_macros={"partition_of": partition_of, "settings_of": settings_of, "approval_of": approval_of}
    | {"rejection_of": rejection_of, "approval_hours": f"{APPROVAL_HOURS:g}"}
    | {"mlflow_ui": (os.environ.get("SPIRA_MLFLOW_UI") or os.environ.get("MLFLOW_TRACKING_URI", "")).rstrip("/")},
    tags=["spira", "training"],
) as dag:
    setup = step(
        "setup", "setup", "--partition", PARTITION, "--preset", "{{ params.preset }}", SETTINGS,
        execution_timeout=timedelta(minutes=5),
    )  # fmt: skip
    extract = step("extract", "extract", *RUN, execution_timeout=HOUR)
    features = step("features", "features", *RUN, execution_timeout=HOUR, outlets=[Asset("spira/features")])
    train = step("train", "train", *RUN, gpu=True, execution_timeout=24 * HOUR)
    validate = step("validate", "validate", *RUN, gpu=True, execution_timeout=HOUR, refusal_is_result=True, report=True)
    package = step("package", "package", *RUN, execution_timeout=HOUR / 4)
    approve = Approval(
        task_id="approve",
        subject="{{ 'Try' if params.get('stage') == 'challenger' else 'Serve' }} the model of partition "
        + PARTITION
        + "?",
        body=QUESTION,
        response_timeout=APPROVAL_HOURS * HOUR,
        retries=0,
    )
    rejected = step("rejected", "reject", *RUN, REJECTION, execution_timeout=timedelta(minutes=5))
    register = step(
        "register", "register", *RUN, APPROVAL, HOLD, execution_timeout=HOUR / 4,
        outlets=[Asset("spira/champion")], tell=("validate",), trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS,
    )  # fmt: skip
    verify = step("verify", "verify", *RUN, execution_timeout=HOUR / 4)

    setup >> extract >> features >> train >> validate >> verdict() >> [package, refused()]
    package >> approve >> [register, rejected]
    register >> verify
    package >> register  # also where nobody has to approve
