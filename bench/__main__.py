"""All benchmarks, one table each."""

from bench import pipeline, training

pipeline.main()
training.main()
