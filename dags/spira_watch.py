"""
# Watch what is sent

Every morning: do the recordings that people send still look like those that the champion was trained on? Length, level,
noise, bandwidth and the distribution of the answers are compared by two measures that have to agree, as for a new
partition; the gateway's audit tells them, and it holds no sound. The report of each day is kept under `runs/watch/`.

- no drift: `drifted` skips what follows.
- drift: the run says so (`watch`, last line). Where the param `retrain` is on (`SPIRA_RETRAIN=1` for scheduled runs), a
  training starts for the newest partition. It must pass the same gate as any other.
"""

import os
from datetime import timedelta

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import DAG, CronTriggerTimetable, Param, task
from step import DEFAULTS, step

with DAG(
    "spira_watch",
    description="Compares what people send with what the champion was trained on",
    doc_md=__doc__,
    schedule=CronTriggerTimetable("0 6 * * *", timezone="UTC"),
    catchup=False,
    max_active_runs=1,
    is_paused_upon_creation=False,
    params={
        "days": Param(7, "How far to look back", type="integer", minimum=1, maximum=365),
        "retrain": Param(os.environ.get("SPIRA_RETRAIN") == "1", "Start a training where they drifted", type="boolean"),
    },
    default_args=DEFAULTS | {"retries": 1, "retry_delay": timedelta(seconds=30)},
    tags=["spira", "serving"],
) as dag:
    watch = step("watch", "watch", "--days={{ params.days }}", execution_timeout=timedelta(minutes=10))

    @task.short_circuit
    def drifted(params=None, ti=None):
        """Whether a training should follow."""
        found = ti.xcom_pull("watch")
        print("\n".join(found["drift"]) or "nothing drifted")
        return bool(found["drift"] and params["retrain"] and found["newest"])

    retrain = TriggerDagRunOperator(
        task_id="retrain",
        trigger_dag_id="spira_training",
        conf={"partition": "{{ ti.xcom_pull('watch')['newest'] }}"},
    )
    watch >> drifted() >> retrain
