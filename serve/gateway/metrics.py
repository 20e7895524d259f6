"""What Prometheus is told. Every series of an answer carries the version that gave it; `none` where no model did."""

from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_TENTHS = tuple(n / 20 for n in range(1, 21))
_PREFIX = "spira_gateway_"

requests = Counter(_PREFIX + "requests", "Answers to /v1/predict", ["version", "status"])
errors = Counter(_PREFIX + "errors", "Refusals and failures by reason", ["version", "reason"])
seconds = Histogram(_PREFIX + "seconds", "From the request's head to the answer's", ["version"], buckets=_SECONDS)
queue_seconds = Histogram(_PREFIX + "queue_seconds", "Waiting for a place at TorchServe", ["version"], buckets=_SECONDS)
model_seconds = Histogram(_PREFIX + "model_seconds", "At TorchServe, its queue included", ["version"], buckets=_SECONDS)
windows = Counter(_PREFIX + "windows", "Windows of the recordings answered", ["version"])
warnings = Counter(_PREFIX + "warnings", "Warnings about recordings answered", ["version", "warning"])
probability = Histogram(_PREFIX + "probability", "Probabilities answered", ["version"], buckets=_TENTHS)
diagnoses = Counter(_PREFIX + "diagnoses", "Diagnoses answered", ["version", "diagnosis"])
fallbacks = Counter(_PREFIX + "fallbacks", "The default version answered for one that is gone", ["version"])
renewals = Counter(_PREFIX + "token_renewals", "Renewals of TorchServe's inference token")
shadow = Counter(_PREFIX + "shadow", "Requests for the shadow: compared, failed, dropped", ["version", "outcome"])
difference = Histogram(
    _PREFIX + "shadow_difference", "Distance of the shadow's probability from the answer", ["version"], buckets=_TENTHS
)
in_flight = Gauge(_PREFIX + "in_flight", "Requests being read, waiting or asked")
