"""All benchmarks, one table each; that of the containers where a Docker engine answers."""

from bench import containers, pipeline, training
from local import engine

pipeline.main()
training.main()
if engine.run("docker", "version").returncode == 0:
    containers.main()
