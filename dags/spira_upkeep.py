"""
# Upkeep

Every five minutes:

- `reconcile` compares what is served with MLflow's champion and mends what differs: after a TorchServe that came back
  without its memory, a run that was killed between the two, or a version that was loaded by hand. Where they agree it
  changes nothing.
- `reap` (where steps run in containers) removes containers that nobody waits for any more. A step's container goes
  with its task; one is left behind only where a worker was killed and its task was not tried again. Such an orphan is
  found by its labels. One whose task still runs, or will be tried again, is left alone: the next try goes on with it.
"""

import os
from datetime import timedelta

from airflow.sdk import DAG, CronTriggerTimetable, task
from step import DEFAULTS, settings, step

with DAG(
    "spira_upkeep",
    description="Keeps what is served and MLflow's champion the same; removes what a killed worker left behind",
    doc_md=__doc__,
    schedule=CronTriggerTimetable("*/5 * * * *", timezone="UTC"),
    catchup=False,
    max_active_runs=1,
    is_paused_upon_creation=False,
    default_args=DEFAULTS | {"retries": 1, "retry_delay": timedelta(seconds=30)},
    tags=["spira", "upkeep"],
) as dag:
    step("reconcile", "reconcile", execution_timeout=timedelta(minutes=5))

    if settings(os.environ)["runtime"] == "docker":  # a process ends with its worker

        @task(execution_timeout=timedelta(minutes=5))
        def reap(ti=None):
            """Remove the containers of this stack whose tasks have ended; returns their labels."""
            from airflow.providers.docker.hooks.docker import DockerHook
            from step_containers import known, orphans, short

            url = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
            engine = DockerHook(docker_conn_id=None, base_url=url, version="auto").api_client
            left = orphans(known(engine, settings(os.environ)["stack"]), ti)
            for container in left:
                engine.remove_container(container["Id"], force=True)
                print(f"removed {short(container)}: its task has ended", container["Labels"])
            print(f"{len(left)} containers were left behind")
            return [container["Labels"] for container in left]

        reap()
