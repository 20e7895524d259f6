"""Bulk import: SPIRA_Dataset_V2 as a folder and a zip, any CSV; what is refused: bombs, escapes, personal data."""

import json
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from collecting import KEY, ROOT, agrees, environment, rows, sound, take
from deliveries import voice, wav

from collect import imports, ledger, source
from collect.landing import settle
from serve.gateway.settings import Mistake
from spira_train.store import Lake, digest_bytes

DAY = "2026-11-01"
HEADER = "file_path,class,sexo,idade,nivel_falta_de_ar\n"
DONOR = "0b8d97ce-48a4-4d7b-9c63-0da2d1f2b1f0"


def data_set(root: Path) -> Path:
    """A small SPIRA_Dataset_V2: two prompts of one control, patients, three splits, and what goes wrong."""
    rows = {
        "train": [f"controle/{DONOR}_1.wav,0,F,35,0", f"controle/{DONOR}_2.wav,0,F,35,0",
                  "pacientes/PTT-20200511-WA0001.wav,1,M,50,5"],
        "eval": ["pacientes/PTT-20200512-WA0002.wav,1,M,61,5"],
        "test": ["pacientes/PTT-20200513-WA0003.wav,1,F,na,5", "pacientes/gone.wav,1,F,70,5",
                 "../outside.wav,1,F,70,5", "pacientes/silent.wav,1,M,70,5", "pacientes/old.wav,1,M,170,5",
                 "pacientes/what.wav,7,M,70,5"],
    }  # fmt: skip
    for folder in ("controle", "pacientes"):
        (root / folder).mkdir(parents=True)
    (root.parent / "outside.wav").write_bytes(sound(99))
    for split, lines in rows.items():
        (root / f"metadata_{split}.csv").write_text(HEADER + "\n".join(lines) + "\n")
    good = [line.partition(",")[0] for split in ("train", "eval") for line in rows[split]] + [
        rows["test"][0].partition(",")[0]
    ]
    for number, name in enumerate([*good, "pacientes/old.wav", "pacientes/what.wav"]):
        (root / name).write_bytes(sound(number))
    (root / "pacientes/silent.wav").write_bytes(wav(voice(0, 1) * 0))
    return root


def zipped(root: Path, file: Path, top: str = "SPIRA_Dataset_V2/") -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(root.rglob("*")):
            if path.is_file():
                archive.write(path, top + path.relative_to(root).as_posix())
    return file


def bring(lake: Lake, path: Path, **more) -> imports.Result:
    options = {"who": "x", "day": DAY, "consent": "training", "limit": 1 << 20} | more
    return imports.run(lake, KEY, path, **options)


@pytest.mark.parametrize("kind", ["folder", "zip", "bare zip"])
def test_a_data_set_in_the_published_form(tmp_path, disk, kind):
    root = data_set(tmp_path / "SPIRA_Dataset_V2")
    top = "SPIRA_Dataset_V2/" if kind == "zip" else ""
    path = root if kind == "folder" else zipped(root, tmp_path / "set.zip", top)
    found = bring(disk, path)
    assert (found.added, found.again) == (5, 0)
    assert found.reasons == {"missing_file": 1, "path_escapes": 1, "silent": 1, "field": 1, "unknown_label": 1}
    assert [(csv, line) for csv, line, _, _ in found.refused] == [("metadata_test.csv", line) for line in range(3, 8)]
    assert "gone.wav" not in str(found.refused)
    landed = rows(disk, DAY)
    assert sorted(row["split"] for row in landed) == ["test", "train", "train", "train", "validation"]
    assert sorted(row["class"] for row in landed) == ["0", "0", "1", "1", "1"]
    assert len({row["subject"] for row in landed if row["class"] == "0"}) == 1  # one donor, two prompts
    assert len({row["subject"] for row in landed}) == 4
    assert {row["nivel_falta_de_ar"] for row in landed} == {"0", "5"}
    agrees(disk)
    before = {name: disk.read(name) for name in disk.files()}
    again = bring(disk, path)
    assert (again.added, again.again) == (0, 5)
    assert {name: disk.read(name) for name in disk.files()} == before


def test_a_csv_with_its_own_consent_and_hospital_numbers(tmp_path, disk):
    (tmp_path / "a.wav").write_bytes(sound(1))
    (tmp_path / "b.wav").write_bytes(sound(2))
    (tmp_path / "c.wav").write_bytes(sound(3))
    file = tmp_path / "ward.csv"
    file.write_text("file_path;class;prontuario;consent;consent_training;ward\na.wav;1;555123;sim;sim;2\n"
                    "b.wav;;555124;1;0;2\nc.wav;1;555125;não;não;2\n")  # fmt: skip
    found = bring(disk, file, consent=None)
    assert (found.added, found.waiting, found.reasons) == (2, 1, {"consent": 1})
    assert found.warnings == ["ward.csv: 1 columns are not known and were left out"]
    assert b"5551" not in b"".join(disk.read(name) for name in disk.files() if name.endswith(("json", "csv")))


def test_without_a_word_of_consent_nothing_is_taken(tmp_path, disk):
    (tmp_path / "a.wav").write_bytes(sound(1))
    (tmp_path / "m.csv").write_text("file_path,class\na.wav,1\n")
    found = bring(disk, tmp_path / "m.csv", consent=None)
    assert (found.added, found.reasons) == (0, {"consent": 1})


def test_a_corrected_label_is_not_passed_over_in_silence(tmp_path, disk):
    kept = take(disk, 1, DAY, subject="a.wav")
    (tmp_path / "a.wav").write_bytes(sound(1))
    (tmp_path / "m.csv").write_text("file_path,class\na.wav,0\n")
    assert bring(disk, tmp_path / "m.csv").reasons == {"other_label": 1}
    (tmp_path / "labels.csv").write_text(f"id,label,why\n{kept.id},0,PCR\n{'0' * 32},1,\n{kept.id},7,\n")
    found = imports.labels_from(disk, tmp_path / "labels.csv", who="x")
    assert (found.added, found.reasons) == (1, {"unknown": 1, "unknown_label": 1})
    assert ledger.find(disk, kept.id).label == "control"
    assert rows(disk, DAY)[0]["class"] == "0"


@pytest.mark.parametrize(
    ("header", "said"),
    [("file_path,class,nome", "personal data; remove column nome"), ("file_path,class,E-Mail", "remove column E-Mail"),
     ("class,sexo", "column file_path is missing"), ("file_path,class,classe", "label is in two columns"),
     ("", "empty")],
)  # fmt: skip
def test_a_csv_that_cannot_be_used_as_a_whole(tmp_path, disk, header, said):
    (tmp_path / "m.csv").write_text(f"{header}\n")
    with pytest.raises(Mistake, match=said):
        bring(disk, tmp_path / "m.csv")
    assert not disk.exists()


def test_a_link_that_leaves_the_folder_is_not_followed(tmp_path, disk):
    (tmp_path / "secret.wav").write_bytes(sound(1))
    root = tmp_path / "set"
    root.mkdir()
    (root / "a.wav").symlink_to(tmp_path / "secret.wav")
    (root / "metadata.csv").write_text("file_path,class\na.wav,1\n/etc/passwd,1\nC:/x.wav,1\n")
    assert bring(disk, root).reasons == {"path_escapes": 3}


def archive(file: Path, *members: tuple[zipfile.ZipInfo | str, bytes]) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
        for member, content in members:
            made.writestr(member, content)
    return file


def test_zips_that_mean_harm(tmp_path, disk, monkeypatch):
    table = ("metadata.csv", b"file_path,class\na.wav,1\nb.wav,1\n")
    link = zipfile.ZipInfo("a.wav")
    link.external_attr = 0o120777 << 16
    secret = zipfile.ZipInfo("a.wav")
    for members, said in (
        ([table, ("../a.wav", sound())], "path that leaves it"),
        ([table, ("/a.wav", sound())], "path that leaves it"),
        ([table, (link, b"/etc/passwd")], "holds a link"),
        ([table, ("a.wav", bytes(80 << 20))], "would unpack to"),
        ([table, (secret, sound()), ("x/../a.wav", sound())], "path that leaves it"),
    ):
        with pytest.raises(Mistake, match=said):
            bring(disk, archive(tmp_path / "z.zip", *members))
    monkeypatch.setattr(source, "MEMBERS", 3)
    with pytest.raises(Mistake, match="would unpack to"):
        bring(disk, archive(tmp_path / "z.zip", table, *((f"{n}", b"") for n in range(3))))
    assert not disk.exists()


def test_a_member_that_lies_about_its_size_takes_no_more_than_the_limit(tmp_path, disk):
    """The directory says 100 bytes, and the member would unpack to 40 MiB."""
    file = archive(tmp_path / "z.zip", ("metadata.csv", b"file_path,class\na.wav,1\nb.wav,1\n"), ("b.wav", sound(2)),
                   ("a.wav", bytes(40 << 20)))  # fmt: skip
    raw = bytearray(file.read_bytes())
    at = raw.rindex(b"PK\x01\x02")
    raw[at + 24 : at + 28] = struct.pack("<I", 100)
    file.write_bytes(raw)
    found = bring(disk, file)
    assert found.added == 1
    assert set(found.reasons) <= {"undecodable", "too_large"}
    assert len(found.refused) == 1


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04" + bytes(100)])
def test_what_is_no_zip(tmp_path, disk, content):
    (tmp_path / "z.zip").write_bytes(content)
    with pytest.raises(Mistake):
        bring(disk, tmp_path / "z.zip")


def test_a_kill_costs_nothing(tmp_path, disk, monkeypatch):
    root, real, count = data_set(tmp_path / "set"), imports.receive, 0

    def dies(*args, **options):
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(imports, "receive", dies)
    with pytest.raises(KeyboardInterrupt):
        bring(disk, root)
    agrees(disk)
    monkeypatch.setattr(imports, "receive", real)
    found = bring(disk, root)
    assert (found.added, found.again) == (3, 2)
    agrees(disk)


def command(home: Path, *words: object) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-m", "collect", *map(str, words)]
    return subprocess.run(call, cwd=ROOT, env=environment(home), capture_output=True, text=True)


@pytest.mark.slow
def test_the_command_line(tmp_path):
    root = data_set(tmp_path / "SPIRA_Dataset_V2")
    done = command(tmp_path, "import", root, "--consent", "training", "--day", DAY)
    assert done.returncode == 1
    assert "taken in" in done.stdout
    assert "metadata_test.csv, line 3: missing_file: the recording is not there" in done.stderr
    assert "Traceback" not in done.stderr
    (tmp_path / "one.flac").write_bytes(wav(voice(50), format="FLAC"))
    added = command(tmp_path, "add", tmp_path / "one.flac", "--subject", "RGH 1", "--consent", "training",
                    "--fact", "age=63", "--fact", "label=control", "--day", DAY)  # fmt: skip
    assert added.returncode == 0, added.stderr
    assert added.stdout.strip() == digest_bytes((tmp_path / "one.flac").read_bytes())[:32]
    assert command(tmp_path, "withdraw", "rgh 1").stdout.endswith("1 recordings of 1 days are gone\n")
    wrong = command(
        tmp_path, "add", tmp_path / "one.flac", "--subject", "x", "--consent", "training", "--fact", "nome=Ana"
    )
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "Ana" not in wrong.stderr
    lines = [json.loads(line) for line in (tmp_path / "trail/trail.jsonl").read_text().splitlines()]
    assert [line["what"] for line in lines] == ["imported", "received", "withdrawn"]
    lake = Lake(str(tmp_path / "lake"))
    settle(lake, DAY)
    assert len(rows(lake, DAY)) == 5
    assert command(tmp_path, "days").stdout.split()[-7:] == [DAY, "6", "0", "5", "5", "1", "False"]
