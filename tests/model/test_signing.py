"""Signatures: of just these files, by just this key; anything else is refused and said so."""

import base64
import json
import shutil
import stat
from pathlib import Path

import pytest
from runs import archive_of, make_run, pack, packaged
from typer.testing import CliRunner

from spira_train import register, signing
from spira_train.cli import app
from spira_train.config import Config
from spira_train.outcome import BadInput, Refused

NAMES = ("the archive", "package.json", "infra.json", "model-card.md", "model.sig")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    signing.make_keys(folder)
    return folder


@pytest.fixture(scope="module")
def baked(tmp_path_factory: pytest.TempPathFactory, keys: Path) -> Path:
    return packaged(tmp_path_factory.mktemp("baked"), key=keys / "signing.key")[0]


@pytest.fixture
def run(baked: Path, tmp_path: Path) -> Path:
    """A signed run."""
    return Path(shutil.copytree(baked, tmp_path / baked.name))


def verified(run: Path, keys: Path) -> dict[str, str]:
    """What registration does before all else."""
    signed = register.signature(run, keys / "signing.pub")
    register.checked(run)
    return signed


def named(run: Path, name: str) -> Path:
    return archive_of(run) if name == "the archive" else run / "package" / name


def test_a_signed_archive_is_taken_wherever_it_was_moved(run: Path, keys: Path) -> None:
    expected = {"signed_by": signing.fingerprint(keys / "signing.key")}
    assert verified(run, keys) == expected
    assert json.loads((run / "package/report.json").read_text())["summary"]["signed_by"] == expected["signed_by"]


def test_the_signature_covers_archive_papers_and_both_blessings(run: Path) -> None:
    bundle = json.loads((run / "package/model.sig").read_text())
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    signed = {entry["name"] for entry in statement["predicate"]["resources"]}
    assert signed == {archive_of(run).name, "package.json", "infra.json", "model-card.md"}


@pytest.mark.parametrize("name", NAMES)
def test_any_flipped_byte_is_refused(run: Path, keys: Path, name: str) -> None:
    file = named(run, name)
    content = file.read_bytes()
    places = {0, len(content) - 1, *range(7, len(content), max(1, len(content) // 40))}
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1
        file.write_bytes(flipped)
        with pytest.raises(Refused, match=r"was changed|signed with another key|damaged|is not what was signed"):
            verified(run, keys)
    file.write_bytes(content)
    verified(run, keys)


def test_it_names_the_file_that_was_changed_even_where_its_report_was_changed_with_it(run: Path, keys: Path) -> None:
    file, report = run / "package/infra.json", run / "package/report.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"golden": 99}))
    facts = json.loads(report.read_text())
    facts["outputs"]["infra.json"] = signing._digest(file.read_bytes())
    report.write_text(json.dumps(facts))
    register.checked(run)  # without the signature nobody would know
    with pytest.raises(Refused, match=r"is not what was signed: infra\.json was changed; run `spira-train package`"):
        verified(run, keys)


@pytest.mark.parametrize("name", ["verdict.json", "metrics.json", "golden/golden.json"])
def test_what_validation_found_cannot_be_changed_between_packaging_and_registering(
    run: Path, keys: Path, name: str
) -> None:
    file, report = run / "validate" / name, run / "validate/report.json"
    file.write_text(file.read_text() + " ")
    facts = json.loads(report.read_text())
    facts["outputs"][name] = signing._digest(file.read_bytes())
    report.write_text(json.dumps(facts))
    with pytest.raises(Refused, match="validate: says something else than was packaged"):
        verified(run, keys)


@pytest.mark.parametrize("name", NAMES)
def test_any_missing_file_is_refused(run: Path, keys: Path, name: str) -> None:
    file = named(run, name)
    file.unlink()
    with pytest.raises(Refused, match=f"{file.name}( is missing|: missing)"):
        verified(run, keys)


@pytest.mark.parametrize("name", ["extra.py", ".gitignore", "spira_train/audio.py"])
def test_a_file_too_many_is_refused(run: Path, keys: Path, name: str) -> None:
    file = run / "package" / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("x")
    with pytest.raises(Refused, match=f"{name} is not among them"):
        verified(run, keys)


def test_a_link_in_the_place_of_a_file_is_refused(run: Path, keys: Path, tmp_path: Path) -> None:
    shutil.move(run / "package/infra.json", tmp_path / "infra.json")
    (run / "package/infra.json").symlink_to(tmp_path / "infra.json")
    with pytest.raises(Refused, match="is not what was signed"):
        verified(run, keys)


def test_any_other_key_is_refused(run: Path, tmp_path: Path) -> None:
    signing.make_keys(tmp_path / "other")
    with pytest.raises(Refused, match="signed with another key"):
        verified(run, tmp_path / "other")


def test_a_signature_that_only_says_it_is_of_our_key_is_refused(run: Path, keys: Path, tmp_path: Path) -> None:
    signing.make_keys(tmp_path / "other")
    file = run / "package/model.sig"
    signing.sign(run / "package", tmp_path / "other" / "signing.key")
    theirs, ours = (signing.fingerprint(place / "signing.key") for place in (tmp_path / "other", keys))
    file.write_text(file.read_text().replace(theirs, ours))
    with pytest.raises(Refused, match="is not what was signed"):
        verified(run, keys)


def test_a_signature_that_is_only_written_differently_is_refused(run: Path, keys: Path) -> None:
    file = run / "package/model.sig"
    file.write_text(json.dumps(json.loads(file.read_text()), indent=1))
    assert signing.verify(run / "package", keys / "signing.pub")
    with pytest.raises(Refused, match=r"model\.sig: was changed since its step wrote it"):
        verified(run, keys)


def test_the_signature_of_another_archive_is_refused(run: Path, keys: Path, tmp_path: Path) -> None:
    other, _, _ = packaged(tmp_path, seed=5, key=keys / "signing.key")
    shutil.copyfile(other / "package/model.sig", run / "package/model.sig")
    with pytest.raises(Refused, match="is not what was signed"):
        verified(run, keys)


def test_an_unsigned_archive_is_refused_where_there_is_a_key_and_named_where_there_is_none(
    keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _, _ = packaged(tmp_path)
    with pytest.raises(Refused, match=r"model\.sig: missing, so nobody vouches for this archive"):
        verified(run, keys)
    assert register.signature(run, None) == {}
    assert "the signature of the archive is not verified: no SPIRA_VERIFY_KEY" in capsys.readouterr().err


def test_packaging_again_changes_no_byte_and_another_key_signs_anew(keys: Path, tmp_path: Path) -> None:
    run, config = make_run(tmp_path)
    assert pack(run, config, keys / "signing.key")["cached"] is False
    before = {file.name: file.read_bytes() for file in (run / "package").iterdir()}
    assert pack(run, config, keys / "signing.key")["cached"] is True
    assert {file.name: file.read_bytes() for file in (run / "package").iterdir()} == before
    signing.make_keys(tmp_path / "new")
    assert pack(run, config, tmp_path / "new" / "signing.key")["cached"] is False
    verified(run, tmp_path / "new")
    assert archive_of(run).read_bytes() == before[archive_of(run).name], "who signs does not change what is signed"


def test_what_was_tampered_with_is_made_anew_and_never_signed(run: Path, keys: Path) -> None:
    config = make_run(run.parent / "again")[1]
    file, report = archive_of(run), run / "package/report.json"
    good = file.read_bytes()
    file.write_bytes(good + b"x")
    facts = json.loads(report.read_text())
    facts["outputs"][file.name] = signing._digest(file.read_bytes())
    report.write_text(json.dumps(facts))
    assert pack(run, config, keys / "signing.key")["cached"] is False
    assert file.read_bytes() == good
    verified(run, keys)


def test_keys_are_private_and_stay(tmp_path: Path) -> None:
    made = signing.make_keys(tmp_path / "secrets", tmp_path)
    secret, public = tmp_path / "secrets/signing.key", tmp_path / "signing.pub"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700
    before = secret.read_bytes(), public.read_bytes()
    public.unlink()
    assert signing.make_keys(tmp_path / "secrets", tmp_path) == made
    assert (secret.read_bytes(), public.read_bytes()) == before
    signing.make_keys(tmp_path / "others")
    shutil.copyfile(tmp_path / "others/signing.pub", public)
    with pytest.raises(BadInput, match=r"signing\.pub: belongs to another pair"):
        signing.make_keys(tmp_path / "secrets", tmp_path)


def test_a_wrong_key_file_is_named(run: Path, keys: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"none\.key \(SPIRA_SIGNING_KEY\): not found; `spira-train keys"):
        signing.fingerprint(tmp_path / "none.key")
    with pytest.raises(BadInput, match=r"none\.pub \(SPIRA_VERIFY_KEY\): not found; `spira-train keys"):
        signing.verify(run / "package", tmp_path / "none.pub")
    with pytest.raises(BadInput, match="no public key in PEM"):
        signing.verify(run / "package", keys / "signing.key")
    loose = Path(shutil.copyfile(keys / "signing.key", tmp_path / "loose.key"))
    loose.chmod(0o644)
    with pytest.raises(BadInput, match="others may read this private key"):
        signing.fingerprint(loose)
    loose.write_text("no key")
    loose.chmod(0o600)
    with pytest.raises(BadInput, match="no private key in PEM"):
        signing.fingerprint(loose)


def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization as forms
    from cryptography.hazmat.primitives.asymmetric import ed25519

    file, plain = tmp_path / "signing.key", forms.NoEncryption()
    pem = ed25519.Ed25519PrivateKey.generate().private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, plain)
    signing._secretly(file, pem)
    with pytest.raises(BadInput, match="must be a key of the elliptic curve P-256"):
        signing.fingerprint(file)


def test_without_a_key_nothing_is_registered_unless_somebody_says_so(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / "config.json").write_text(Config(partition="2026-11-05").canonical())
    monkeypatch.delenv("SPIRA_VERIFY_KEY", raising=False)
    words = ["register", "--run", str(run), "--models", str(tmp_path), "--mlflow", "none", "--keys", str(tmp_path)]
    refused = CliRunner().invoke(app, words)
    assert isinstance(refused.exception, BadInput)
    assert str(refused.exception).startswith("no key to verify the archive with: set SPIRA_VERIFY_KEY")
    asked = []
    done = {"summary": {}, "fingerprint": "", "cached": True, "seconds": 0}
    monkeypatch.setattr(register, "run", lambda **options: asked.append(options["key"]) or done)
    CliRunner().invoke(app, [*words, "--unsigned"])
    CliRunner().invoke(app, words, env={"SPIRA_VERIFY_KEY": "/trust/signing.pub"})
    assert asked == [None, Path("/trust/signing.pub")]


def test_the_command_makes_a_pair_of_keys(tmp_path: Path) -> None:
    made = CliRunner().invoke(app, ["keys", str(tmp_path / "secret"), "--public", str(tmp_path)])
    assert made.exit_code == 0, made.output
    expected = signing.fingerprint(tmp_path / "secret" / "signing.key")
    assert json.loads(made.output.splitlines()[-1])["fingerprint"] == expected
