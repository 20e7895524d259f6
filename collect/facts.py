"""`Facts`: what is known of a recording. What names a person is refused; who it is of leaves as a pseudonym."""

import re
import unicodedata
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator

from spira_train.landing import PERSONAL

Label = Literal["patient", "control"]
# SPIRA's four recordings of a person: spoken consent, sustained vowel, nursery rhyme, the sentence itself.
Sentence = Literal["aceite", "sustentada", "parlenda", "frase"]
# A hospital number is accepted, as the subject: it never leaves but as a pseudonym.
NUMBERS = frozenset(("pacienterghc", "rghc", "rgh", "patientrgh", "prontuario"))
# Text that names or reaches a person. Device names hold numbers as well: a telephone needs its length, or its grouping.
_TELLING = {
    "an e-mail address": re.compile(r"[^\s@]+@[^\s@]+\.\w+"),
    "a CPF": re.compile(r"(?<!\d)\d{3}\.?\d{3}\.?\d{3}[-\s]?\d{2}(?!\d)"),
    "an IP address": re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.])|(?:[0-9a-f]{1,4}:){4,}", re.IGNORECASE),
    "a telephone number": re.compile(
        r"\+\d[\d\s().-]{7,}\d|\(\d{2,3}\)\s*\d{4,5}|(?<!\d)\d{4,5}[-\s]\d{4}(?!\d)|\d(?:[\s().-]?\d){9,}"
    ),
}
_FREE = ("site", "device", "cause")
WORDS = 500  # characters of free text
_AHEAD = timedelta(days=1)  # clocks of phones are wrong, and their zones

Text = Annotated[str, Field(min_length=1, max_length=100)]


class Wrong(ValueError):
    """Facts that cannot be taken: `field`, a `reason` in a word, and why. None of them ever holds a value."""

    def __init__(self, field: str, reason: str, detail: str) -> None:
        super().__init__(f"{field}: {detail}" if field else detail)
        self.field, self.reason, self.detail = field, reason, detail


class Facts(BaseModel):
    """What comes with a recording; empty fields are left out. `read` makes one from what people send."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True, hide_input_in_errors=True)

    consent: bool = Field(description="the person agreed to be recorded; without it nothing is taken")
    consent_training: bool = Field(False, description="and to the recording being trained on")
    subject: str = Field(min_length=1, max_length=200, description="whose voice; only its pseudonym is kept")
    sex: Literal["M", "F"] | None = None
    age: Annotated[int, Field(ge=0, le=120)] | None = Field(None, description="years")
    site: Text | None = Field(None, description="where it was recorded")
    device: Text | None = Field(None, description="what it was recorded with")
    cause: Text | None = Field(None, description="of the insufficiency")
    dyspnoea: Annotated[int, Field(ge=0, le=5)] | None = Field(None, description="how short of breath, 0 to 5")
    spo2: Annotated[float, Field(ge=0, le=100)] | None = Field(None, description="%")
    label: Label | None = Field(None, description="where it is known already")
    sentence: Sentence | None = None
    split: Literal["train", "validation", "test"] | None = Field(None, description="where the data set has one")
    collected_at: AwareDatetime | None = None

    @field_validator("consent")
    @classmethod
    def _agreed(cls, value: bool) -> bool:
        if not value:
            raise ValueError("is not given, so the recording is not taken")
        return value

    @field_validator(*_FREE)
    @classmethod
    def _of_nobody(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if found := _telling(value):
            raise ValueError(found)
        return value

    @field_validator("subject")
    @classmethod
    def _printable(cls, value: str) -> str:
        if _control(value):
            raise ValueError("holds control characters")
        return value

    @field_validator("collected_at")
    @classmethod
    def _past(cls, value: datetime | None) -> datetime | None:
        if value and value > datetime.now(UTC) + _AHEAD:
            raise ValueError("lies in the future")
        return value


def read(given: Mapping[str, Any]) -> Facts:
    """`given` as facts; a hospital number becomes the subject. Raises `Wrong` naming the field, never its value."""
    fields = {name: value for name, value in given.items() if value not in ("", None)}
    for name in list(fields):
        plain = bare(name)
        if plain in NUMBERS:
            if "subject" in fields:
                raise Wrong(_shown(name), "personal_data", "give either the subject or a hospital number, not both")
            fields["subject"] = str(fields.pop(name))
        elif plain in PERSONAL:
            raise Wrong(_shown(name), "personal_data", "names a person; leave it out, it is not kept here")
    try:
        return Facts.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        field = _shown(str(first["loc"][0])) if first["loc"] else ""
        said = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            raise Wrong(field, "field", f"is not known; there are {', '.join(Facts.model_fields)}") from None
        reason = "personal_data" if said.startswith("looks like") else "consent" if field == "consent" else "field"
        raise Wrong(field, reason, said[:1].lower() + said[1:]) from None


def harmless(field: str, text: str) -> str:
    """Free text of people about a recording; raises `Wrong` where it is too long or looks like a person's."""
    text = text.strip()
    if len(text) > WORDS:
        raise Wrong(field, "field", f"has more than {WORDS} characters")
    if found := _telling(text):
        raise Wrong(field, "personal_data" if found.startswith("looks like") else "field", found)
    return text


def bare(name: str) -> str:
    """A field's name in bare small letters, as `PERSONAL` has them.

    >>> bare("Prontuário")
    'prontuario'
    """
    plain = unicodedata.normalize("NFKD", name.lower())
    return "".join(char for char in plain if char.isascii() and char.isalnum())


def _telling(text: str) -> str:
    """What is wrong with free text; empty where nothing is."""
    if _control(text):
        return "holds control characters"
    looks = next((what for what, form in _TELLING.items() if form.search(text)), "")
    return looks and f"looks like {looks}; leave out what names or reaches a person"


def _control(text: str) -> bool:
    return any(unicodedata.category(char).startswith("C") for char in text)


def _shown(name: str) -> str:
    """A field's name that may be said again: somebody may have sent a person's name for one."""
    return name if name in Facts.model_fields or bare(name) in PERSONAL else "a field"
