"""The answer that the API promises, made from the handler's."""

from typing import Literal

from pydantic import BaseModel, Field, ValidationError

from serve.gateway.problem import Problem
from serve.gateway.upstream import Reply


class Model(BaseModel):
    """Which model answered."""

    version: str = Field(examples=["2026-11-05-7a7d4e72"])
    content: str = Field(description="SHA-256 over all that its archive holds, as the model repository keeps it")


class Heard(BaseModel):
    """What was measured on the recording."""

    seconds: float
    rms_dbfs: float = Field(description="its level, in decibels below full scale")
    snr_db: float = Field(description="speech to noise, estimated")
    bandwidth_hz: float = Field(description="the highest frequency in it: a telephone leaves 3400")


class Decision(BaseModel):
    """How the diagnosis follows: inconclusive where `calibrated` is within `band` of `threshold`, else by its side."""

    threshold: float
    band: float


class Prediction(BaseModel):
    """The answer to one recording."""

    request_id: str
    probability: float = Field(description="of respiratory insufficiency: the mean over the windows", ge=0, le=1)
    calibrated: float = Field(description="the same, calibrated; the diagnosis follows from it", ge=0, le=1)
    diagnosis: Literal["positive", "negative", "inconclusive"]
    warnings: list[str] = Field(
        description="doubts about the recording: short, quiet, clipped; unfamiliar_length, _level, _noise, _bandwidth, "
        "_sound where it is unlike all that the model was trained on"
    )
    heard: Heard | None = Field(None, description="absent where the model's archive is older than this field")
    model: Model
    decision: Decision | None = Field(None, description="absent where the model's archive is older than this field")
    windows: list[float] | None = Field(None, description="the probability of each window, where asked for")
    window_seconds: float | None = Field(None, description="length of a window, with `windows`")
    step_seconds: float | None = Field(
        None, description="from the start of a window to the next one's; the last one ends with the recording"
    )


def shaped(reply: Reply, request_id: str) -> Prediction | None:
    """The handler's answer in our shape; None for a refusal."""
    try:
        model = Model.model_validate(reply.body["model"])
        if reply.status != 200:
            return None
        return Prediction.model_validate(reply.body | {"request_id": request_id, "model": model})
    except ValidationError:
        raise Problem(502, "model", "the model's answer is not of the shape that was agreed") from None
