import io
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spira_train import landing, table
from spira_train.landing import Delivery, Row
from spira_train.outcome import BadInput, NothingToDo
from spira_train.split import pseudonym
from spira_train.store import Lake

DAY = "2020-05-11"
DONOR = "1b4e28ba-2fa1-4d3b-a3f5-ef19b5a7633b"


def deliver(folder: Path, metadata: str | bytes, *files: str) -> Lake:
    root = folder / "landing" / DAY
    root.mkdir(parents=True)
    content = metadata.encode() if isinstance(metadata, str) else metadata
    (root / "metadata.csv").write_bytes(content)
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(file.encode())
    return Lake(str(folder))


def read(lake: Lake) -> Delivery:
    return landing.read(lake, DAY, "salt")


def refused(delivery: Delivery) -> list[tuple[int, str]]:
    return [(refusal.line, refusal.reason) for refusal in delivery.refusals]


def test_the_published_form(tmp_path: Path) -> None:
    control = f"controle/{DONOR}_1.wav"
    lake = deliver(
        tmp_path,
        f"file_path,class,sexo,idade,nivel_falta_de_ar\n{control},0,F,35,0\npacientes/PTT-1-WA1.wav,1,M,50,5\n",
        control,
        "pacientes/PTT-1-WA1.wav",
    )
    delivery = read(lake)
    assert delivery.warnings == ()
    assert delivery.refusals == ()
    assert delivery.rows == (
        Row(2, control, pseudonym(DONOR, "salt"), 0, sex="F", age=35, dyspnoea=0),
        Row(3, "pacientes/PTT-1-WA1.wav", pseudonym("pacientes/PTT-1-WA1.wav", "salt"), 1, sex="M", age=50, dyspnoea=5),
    )


@pytest.mark.parametrize(
    "text",
    [
        "file_path,class\na.wav,1\n",
        "\ufefffile_path;class\r\na.wav;1\r\n",
        "\ufefffile_path\tclass\na.wav\t1",
        " File_Path , CLASS \n a.wav , 1.0 \n\n,\n",
        '"file path","class"\n"a.wav","1"\n',
        "class,file-path\n1,.\\a.wav\n",
    ],
)
def test_csv_as_people_write_it(tmp_path: Path, text: str) -> None:
    delivery = read(deliver(tmp_path, text, "a.wav"))
    assert [(row.path, row.label) for row in delivery.rows] == [("a.wav", 1)]


def test_optional_columns(tmp_path: Path) -> None:
    text = (
        "file_path,class,subject,site,device,cause,spO2,split,sexo,idade\n"
        "a.wav,1,S1,ward,phone,covid,91.5,eval,feminino,61.0\n"
        'b.wav,0,,,-,NA,"97,5",,x,old\n'
        "c.wav,0\n"
    )
    one, two, three = read(deliver(tmp_path, text, "a.wav", "b.wav", "c.wav")).rows
    assert (one.subject, one.split, one.sex, one.age) == (pseudonym("S1", "salt"), "validation", "F", 61)
    assert (one.site, one.device, one.cause, one.spo2) == ("ward", "phone", "covid", 91.5)
    assert (two.site, two.device, two.cause, two.spo2, two.sex, two.age) == (None, None, None, 97.5, None, None)
    assert three.site is three.split is None


def test_one_donor_of_several_prompts_is_one_subject(tmp_path: Path) -> None:
    files = [f"controle/{DONOR}_{prompt}.wav" for prompt in (1, 2, 3)]
    rows = read(deliver(tmp_path, "file_path,class\n" + "".join(f"{f},0\n" for f in files), *files)).rows
    assert len({row.subject for row in rows}) == 1


def test_bad_rows_are_refused_one_by_one(tmp_path: Path) -> None:
    rows = {
        "a.wav,2": "unknown_label",
        "a.wav,": "unknown_label",
        "a.wav,patient": "unknown_label",
        ",1": "bad_value",
        "a.wav,1,train,surplus": "bad_value",
        "a.wav,1,testing": "bad_value",
        "gone.wav,1": "missing_file",
        ".hidden,1": "missing_file",
        "sub,1": "missing_file",
        "../2020-05-12/a.wav,1": "path_escapes",
        "sub/../../x.wav,1": "path_escapes",
        "/etc/passwd,1": "path_escapes",
        "C:\\a.wav,1": "path_escapes",
        "s3://bucket/a.wav,1": "path_escapes",
        "link.wav,1": "path_escapes",
    }
    lake = deliver(
        tmp_path, "file_path,class,split\n" + "\n".join(rows) + "\na.wav,1\n", "a.wav", ".hidden", "sub/b.wav"
    )
    (tmp_path / "outside.wav").write_bytes(b"x")
    (tmp_path / "landing" / DAY / "link.wav").symlink_to(tmp_path / "outside.wav")
    delivery = read(lake)
    assert refused(delivery) == list(enumerate(rows.values(), 2))
    assert [row.line for row in delivery.rows] == [len(rows) + 2]
    assert any("2 of the delivered files are not listed" in warning for warning in delivery.warnings)
    assert not any("wav" in refusal.detail or "passwd" in refusal.detail for refusal in delivery.refusals)


def test_names_with_a_colon_are_no_drive(tmp_path: Path) -> None:
    name = "2022-05-01T10:00:00_hospital_1_FRASE.wav"
    assert len(read(deliver(tmp_path, f"file_path,class\n{name},1\n", name)).rows) == 1


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ("file_path,sexo\na.wav,M\n", ["class is missing", "found: file_path, sexo", "needed: file_path, class"]),
        ("pacientes/a.wav\npacientes/b.wav\n", ["has no header", "file_path,class"]),
        ("file_path,class,class\na.wav,1,0\n", ["class appears twice"]),
        ("file_path,class\na.wav,ação\n".encode("latin-1"), ["not UTF-8"]),
        ("file_path,class\n".encode("utf-16"), ["not UTF-8"]),
        ("file_path,class\na.wav," + "x" * 200_000, ["line 2 is not valid CSV"]),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, metadata: str | bytes, words: list[str]) -> None:
    with pytest.raises(BadInput) as caught:
        read(deliver(tmp_path, metadata))
    for word in [f"landing/{DAY}/metadata.csv", *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "column",
    ["nome", "Telefone_Origem", "paciente_rghc", "RGH", "enderecoIp", "user-agent", "CPF", "E-mail", "endereço IP"],
)
def test_personal_data_is_refused_as_a_whole(tmp_path: Path, column: str) -> None:
    with pytest.raises(BadInput) as caught:
        read(deliver(tmp_path, f"file_path,class,{column}\na.wav,1,Maria da Silva\n", "a.wav"))
    assert f"remove column {column}" in str(caught.value)
    assert "Maria" not in str(caught.value)


def test_unknown_columns_are_ignored_aloud(tmp_path: Path) -> None:
    delivery = read(deliver(tmp_path, "file_path,class,terapia\na.wav,1,O2\n", "a.wav"))
    assert len(delivery.rows) == 1
    assert "column terapia is not known" in delivery.warnings[0]


@pytest.mark.parametrize("metadata", ["", "\n\n", "\ufeff", "file_path,class\n"])
def test_no_rows_is_nothing_to_do(tmp_path: Path, metadata: str) -> None:
    with pytest.raises(NothingToDo):
        read(deliver(tmp_path, metadata))


def test_no_metadata_says_what_to_deliver(tmp_path: Path) -> None:
    lake = deliver(tmp_path, "")
    (tmp_path / "landing" / DAY / "metadata.csv").unlink()
    with pytest.raises(BadInput, match=r"metadata\.csv: not found"):
        read(lake)


def test_the_digest_sees_every_byte_and_name(tmp_path: Path) -> None:
    lake = deliver(tmp_path, "file_path,class\na.wav,1\n", "a.wav")
    seen = {landing.landing_digest(lake, DAY)[0]}
    folder = tmp_path / "landing" / DAY
    for change in (
        lambda: (folder / "a.wav").write_bytes(b"b.wav"),
        lambda: (folder / "a.wav").rename(folder / "b.wav"),
        lambda: (folder / "metadata.csv").write_bytes(b"file_path,class\na.wav,0\n"),
        lambda: (folder / "more.wav").write_bytes(b""),
    ):
        change()
        seen.add(landing.landing_digest(lake, DAY)[0])
    assert len(seen) == 5
    before = landing.landing_digest(lake, DAY)
    (folder / ".upload.partial").write_bytes(b"x")
    assert landing.landing_digest(lake, DAY) == before


CELL = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=12)


@given(st.lists(st.tuples(CELL, CELL, CELL), min_size=1, max_size=12), st.sampled_from([",", ";", "\t"]))
@settings(deadline=None)
def test_no_row_is_lost(rows: list[tuple[str, str, str]], delimiter: str) -> None:
    import csv

    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows([("file_path", "class", "site"), *rows])
    fs = fsspec.filesystem("memory")
    fs.pipe_file(f"/lost/landing/{DAY}/metadata.csv", text.getvalue().encode())
    fs.pipe_file(f"/lost/landing/{DAY}/a.wav", b"")
    filled = sum(any(cell.strip() for cell in row) for row in rows)
    try:
        delivery = landing.read(Lake("memory://lost"), DAY, "salt")
    except NothingToDo:
        assert filled == 0
    else:
        assert len(delivery.rows) + len(delivery.refusals) == filled


@given(st.binary(max_size=300))
def test_no_bytes_crash_the_table(content: bytes) -> None:
    try:
        lines = table.read(content, "metadata.csv")
    except BadInput as error:
        assert "metadata.csv" in str(error)
    else:
        assert all(any(cells) for _, cells in lines)
