"""
# Close the days of the collection

Every quarter of an hour: which days of the collection are over (in UTC), or have changed since they were closed, by a
late label or a withdrawal?

- `collected` closes them in the lake, and marks versions that were trained on recordings withdrawn since.
  *skipped*: nothing has changed.
- `announce` publishes the asset `spira/collected`, an event a day with its `partition`.
- `wanted` and `train`: where the param `train` is on (`SPIRA_TRAIN_ON_CLOSE=1` for scheduled runs), one run of
  `spira_training` starts, for the newest day: it prepares the other days itself and trains on all of them.

A failed run may be cleared: it announces the same days again.
"""

import os
from datetime import timedelta

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import DAG, Asset, CronTriggerTimetable, Param, task
from step import DEFAULTS, step

COLLECTED = Asset("spira/collected")

with DAG(
    "spira_collection",
    description="Hands the days of the collection that are over to training",
    doc_md=__doc__,
    schedule=CronTriggerTimetable("*/15 * * * *", timezone="UTC"),
    catchup=False,
    max_active_runs=1,
    is_paused_upon_creation=False,
    params={
        "train": Param(
            os.environ.get("SPIRA_TRAIN_ON_CLOSE") == "1", "Start a training where a day was closed", type="boolean"
        ),
    },
    default_args=DEFAULTS,
    tags=["spira", "collection"],
) as dag:
    collected = step("collected", "collected", "--by={{ run_id }}", execution_timeout=timedelta(minutes=10))

    @task
    def days(ti=None):
        """The days that were closed, oldest first."""
        return ti.xcom_pull("collected")["days"]

    @task(outlets=[COLLECTED], map_index_template="{{ day }}")
    def announce(day, outlet_events=None):
        """One event of the asset, for one day."""
        from airflow.sdk import get_current_context

        get_current_context()["day"] = day
        event = outlet_events[COLLECTED]
        event.extra = {"partition": day}
        event.add_partitions(day)

    @task.short_circuit
    def wanted(params=None, ti=None):
        """Whether a training should follow."""
        return bool(params["train"] and ti.xcom_pull("collected")["newest"])

    train = TriggerDagRunOperator(
        task_id="train",
        trigger_dag_id="spira_training",
        conf={"partition": "{{ ti.xcom_pull('collected')['newest'] }}"},
    )
    closed = days()
    announced = announce.expand(day=closed)
    collected >> closed
    announced >> wanted() >> train
