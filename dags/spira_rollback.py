"""
# Roll back

Gives the place back to the version that was served before, or to an earlier champion that you name. The model server
is changed first, and no request fails meanwhile; MLflow's aliases follow. Nothing is trained and nothing is deleted:
the version that was taken away stays on record, and its own run can promote it again (clear the task `register`).
"""

from datetime import timedelta

from airflow.sdk import DAG, Param
from step import DEFAULTS, step

with DAG(
    "spira_rollback",
    description="Serve the previous model again",
    doc_md=__doc__,
    schedule=None,
    catchup=False,
    max_active_runs=1,
    is_paused_upon_creation=False,
    params={
        # null, not "": the form cannot be sent with an empty field of type string
        "version": Param(
            None,
            "An earlier champion, such as 2026-11-05-1a2b3c4d. Empty: the previous one",
            type=["null", "string"],
            pattern=r"^\d{4}-\d{2}-\d{2}-[0-9a-f]{8}$",
        )
    },
    default_args=DEFAULTS,
    tags=["spira", "serving"],
) as dag:
    step("rollback", "rollback", "--to={{ params.version or '' }}", execution_timeout=timedelta(minutes=5))
