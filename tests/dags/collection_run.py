"""Runs `spira_collection` once, without a scheduler; prints what came of it as JSON. Arguments: folder, param `train`.

A process of its own: Airflow's database is made in the folder, and the step is a stub that says what the real one does.
"""

import json
import os
import sys
from pathlib import Path

STUB = """#!/bin/sh
echo "$@" > "$(dirname "$0")/words"
echo '{"step": "collected", "exit": 0, "outcome": "done", "message": "", "days": ["2026-11-01", "2026-11-02"],'\\
' "newest": "2026-11-02", "marked": {}}'
"""


def main(folder: Path, train: bool) -> None:
    stub = folder / "spira-train"
    stub.write_text(STUB)
    stub.chmod(0o700)
    os.environ |= {
        "AIRFLOW_HOME": str(folder),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(Path(__file__).resolve().parents[2] / "dags"),
        "SPIRA_RUNTIME": "process",
        "SPIRA_TRAIN": str(stub),
    }
    sys.path.insert(0, os.environ["AIRFLOW__CORE__DAGS_FOLDER"])
    from airflow.utils.db import initdb, provide_session

    initdb()
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db

    DagBundlesManager().sync_bundles_to_db()
    bag = DagBag(os.environ["AIRFLOW__CORE__DAGS_FOLDER"])
    sync_bag_to_db(bag, "dags-folder", None)
    run = bag.dags["spira_collection"].test(run_conf={"train": train})

    @provide_session
    def look(session=None):
        from airflow.models.asset import AssetEvent, AssetModel
        from airflow.models.dagrun import DagRun
        from airflow.models.taskinstance import TaskInstance
        from sqlalchemy import select

        found = select(AssetModel.name, AssetEvent.extra, AssetEvent.partition_key).join(
            AssetEvent, AssetEvent.asset_id == AssetModel.id
        )
        events = session.execute(found).all()
        tasks = session.scalars(select(TaskInstance).where(TaskInstance.run_id == run.run_id)).all()
        training = session.scalars(select(DagRun).where(DagRun.dag_id == "spira_training")).all()
        return {
            "state": str(run.state),
            "run_id": run.run_id,
            "events": sorted(([name, extra, key] for name, extra, key in events), key=str),
            "tasks": sorted([task.task_id, task.map_index, str(task.state)] for task in tasks),
            "training": [one.conf for one in training],
            "words": (folder / "words").read_text().split(),
        }

    print(json.dumps(look()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] == "train")
