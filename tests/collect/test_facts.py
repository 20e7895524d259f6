"""What is known of a recording, and what must not be: names, numbers that reach a person, hospital numbers in clear."""

import json
import stat
import subprocess
import sys

import pytest
from collecting import KEY, ROOT, known
from hypothesis import given
from hypothesis import strategies as st

from collect.facts import Wrong, harmless, read
from collect.pseudonym import pseudonym, read_key
from serve.gateway.settings import Mistake
from spira_train.landing import PERSONAL


@pytest.mark.parametrize(
    "name", ["nome", "Nome Completo", "telefone", "enderecoIp", "CPF", "e-mail", "IP", "Nome da Mãe"]
)
def test_what_names_a_person_is_refused_and_not_repeated(name):
    with pytest.raises(Wrong) as said:
        read(known(**{name: "Maria da Silva"}))
    assert said.value.reason == "personal_data"
    assert name in str(said.value)
    assert "Maria" not in str(said.value)


def test_every_personal_field_of_landing_is_refused_or_is_a_hospital_number():
    for name in PERSONAL:
        fields = known(**{name: "12345"})
        with pytest.raises(Wrong):
            read(fields)
        del fields["subject"]
        if name in ("rghc", "rgh", "pacienterghc", "patientrgh", "prontuario"):
            assert read(fields).subject == "12345"
        else:
            with pytest.raises(Wrong):
                read(fields)


@pytest.mark.parametrize("field", ["site", "device", "cause"])
@pytest.mark.parametrize(
    "text",
    ["ask ana@hospital.org", "123.456.789-01", "call 11 98765-4321", "+55 11 98765 4321", "10.0.0.17", "(11) 98765",
     "fe80:0:0:0:1:2", "a\nb", "x" * 101],
)  # fmt: skip
def test_text_that_reaches_a_person_is_refused(field, text):
    with pytest.raises(Wrong) as said:
        read(known(**{field: text}))
    assert said.value.field == field
    assert text not in str(said.value)


@pytest.mark.parametrize(
    "text", ["SM-A525F", "iPhone 12 Pro Max", "ward 3, bed 12", "Hospital das Clínicas", "2021-05-11", "Android 14.0.1"]
)
def test_names_of_devices_and_places_are_taken(text):
    assert read(known(device=text)).device == text


@pytest.mark.parametrize(
    ("fields", "field", "reason"),
    [({"consent": False}, "consent", "consent"), ({"consent": None}, "consent", "consent"),
     ({"age": 130}, "age", "field"), ({"sex": "x"}, "sex", "field"), ({"spo2": float("nan")}, "spo2", "field"),
     ({"dyspnoea": 6}, "dyspnoea", "field"), ({"label": "ill"}, "label", "field"),
     ({"subject": ""}, "subject", "field"), ({"sentence": "hm"}, "sentence", "field"),
     ({"Maria da Silva": 1}, "a field", "field"),
     ({"collected_at": "2999-01-01T00:00:00Z"}, "collected_at", "field"), ({"subject": "a\0b"}, "subject", "field")],
)  # fmt: skip
def test_wrong_facts_are_named(fields, field, reason):
    with pytest.raises(Wrong) as said:
        read(known(**fields))
    assert (said.value.field, said.value.reason) == (field, reason)


@given(st.dictionaries(st.text(max_size=20), st.one_of(st.none(), st.booleans(), st.text(max_size=40), st.floats())))
def test_whatever_is_sent_is_taken_or_refused_in_words(fields):
    try:
        json.dumps(read(known(**fields)).model_dump(mode="json"), allow_nan=False)
    except Wrong as wrong:
        assert wrong.detail


@given(st.text(min_size=1, max_size=40), st.text(min_size=1, max_size=40))
def test_a_pseudonym_depends_on_the_subject_and_on_the_key(one, other):
    assert pseudonym(KEY, one) == pseudonym(KEY, f"  {one} ")
    assert pseudonym(KEY, one) != pseudonym(b"another key", one)
    same = " ".join(one.split()).casefold() == " ".join(other.split()).casefold()
    if not same and one.isascii() and other.isascii():
        assert pseudonym(KEY, one) != pseudonym(KEY, other)


def test_a_reason_is_held_to_the_same():
    assert harmless("why", " X-ray of Monday ") == "X-ray of Monday"
    with pytest.raises(Wrong, match="why: looks like an e-mail"):
        harmless("why", "ask ana@hospital.org")


def test_the_key_is_made_once_for_its_owner_alone(tmp_path):
    file = tmp_path / "secrets" / "key"
    code = (
        f"from pathlib import Path; from collect.pseudonym import read_key; print(read_key(Path({str(file)!r})).hex())"
    )
    command = [sys.executable, "-c", code]
    made = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    keys = {process.communicate(timeout=60)[0].strip() for process in made}
    assert keys == {read_key(file).hex()}
    assert len(read_key(file)) == 32
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [one.name for one in file.parent.iterdir()] == ["key"]
    file.write_text("no key")
    with pytest.raises(Mistake, match="not a key"):
        read_key(file)
