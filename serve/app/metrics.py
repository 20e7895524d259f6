"""What Prometheus is told by the app."""

from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 900)
_PREFIX = "spira_app_"

received = Counter(_PREFIX + "received", "Recordings that came in whole")
published = Counter(_PREFIX + "published", "Requests published, those sent again included")
redriven = Counter(_PREFIX + "redriven", "Requests published again after a long wait")
answered = Counter(_PREFIX + "answered", "Inferences that ended", ["state", "error"])
repeated = Counter(
    _PREFIX + "results_repeated", "Results that changed nothing: delivered twice, or withdrawn meanwhile"
)
seconds = Histogram(_PREFIX + "seconds", "From an inference's beginning to its end", buckets=_SECONDS)
states = Gauge(_PREFIX + "inferences", "Inferences by state", ["state"])
oldest = Gauge(_PREFIX + "oldest_seconds", "Age of the oldest inference that waits for its answer")
dead = Gauge(_PREFIX + "dead_letters", "Dead letters that nobody has sent again")
connected = Gauge(_PREFIX + "nats_connected", "Whether the app is connected to NATS")
deleted = Counter(_PREFIX + "recordings_deleted", "Recordings deleted", ["why"])
live_accuracy = Gauge(_PREFIX + "live_accuracy", "Right among conclusive answers with a later diagnosis", ["version"])
live_labels = Gauge(_PREFIX + "live_labels", "Answers with a later diagnosis", ["version"])
