"""`spira-train import-covid19-cough`: real, dirty recordings for the pipeline to prove itself on.

covid19-cough (github.com/covid19-cough/dataset, CC0) holds coughs asked for by a call centre and by a Telegram bot,
with broken files, duplicates and contradicting labels. All are landed as delivered, one partition a source: refusing
is the business of extract. The fields `asymptomatic`, `kind` and `verified` stay behind, since their presence tells
the label. It is not SPIRA data: a model of it says nothing about respiratory insufficiency.
"""

import csv
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spira_train.outcome import BadInput
from spira_train.store import Lake, digest_bytes, digest_json, publish

METADATA = "metadata.json"
DEVICES = {"call-center": "telephone", "telegram": "messenger"}
CALL_CENTER_DAY, TELEGRAM_DAY = "2020-12-01", "2020-12-02"  # the files carry no date; the set was closed on 2020-12-11
_CLIP = re.compile(r"clip derived from (?P<title>.*) \(.*\) by (?P<author>.*)")

Files = dict[str, bytes]


def run(
    *,
    source: Path,
    lake: str,
    call_center_day: str = CALL_CENTER_DAY,
    telegram_day: str = TELEGRAM_DAY,
    noise: Path | None = None,
) -> dict[str, Any]:
    """Land the recordings of `source` (metadata.json and raw/) in two partitions and the noise tracks beside them.

    noise: folder with noise_manifest.csv, esc10/ and speech-commands/; by default `noise` beside `source`, where it
    is. What stands in the lake already with the same bytes is left alone. Raises `BadInput`.
    """
    if call_center_day == telegram_day:
        raise BadInput(f"both sources are to land on {telegram_day}; give each a day of its own")
    days = {"call-center": call_center_day, "telegram": telegram_day}
    folders = {f"landing/{days[name]}": delivery(Path(source), name) for name in days}
    noise = noise or Path(source).absolute().parent / "noise"
    if (noise / "noise_manifest.csv").exists():
        folders["noise"] = tracks(noise)
    place = Lake(lake)
    return {
        "partitions": sorted(days.values()),
        "written": [folder for folder, files in folders.items() if _settle(place, folder, files)],
        "recordings": {days[name]: len(folders[f"landing/{days[name]}"]) - 1 for name in days},
        "noise_tracks": sum(name.endswith(".wav") for name in folders.get("noise", {})),
        "digest": digest_json({name: _digests(files) for name, files in folders.items()}),
    }


def delivery(source: Path, name: str) -> Files:
    """The files of one source's partition: metadata.csv and the recordings as they are."""
    try:
        entries = json.loads((source / METADATA).read_text(encoding="utf-8"))
        mine = [entry for entry in entries if entry["source"] == name]
        rows = [(entry["filename"], int(entry["covid19"]), Path(entry["filename"]).stem) for entry in mine]
        files = {file: (source / "raw" / Path(file).name).read_bytes() for file, _, _ in rows}
    except FileNotFoundError as error:
        raise BadInput(f"{source}: not the covid19-cough data set ({error.filename} is missing)") from None
    except (ValueError, KeyError, TypeError):
        raise BadInput(f"{source}/{METADATA}: not the list of recordings of covid19-cough") from None
    lines = [(file, label, subject, name, DEVICES[name]) for file, label, subject in rows]
    return files | {"metadata.csv": _csv(("file_path", "class", "subject", "site", "device"), lines)}


def tracks(folder: Path) -> Files:
    """The noise tracks with noise_data.csv; cuts of one original recording share a `source`.

    The authors' names travel along in noise_manifest.csv and SOURCE.txt, as the licences ask.
    """
    with (folder / "noise_manifest.csv").open(encoding="utf-8", newline="") as stream:
        origin = {row["file"]: _origin(row["clip_source"]) for row in csv.DictReader(stream)}
    found = sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/*.wav"))
    lines = [(file, origin.get(file, Path(file).stem)) for file in found]
    papers = [name for name in ("noise_manifest.csv", "SOURCE.txt", "ESC-50.LICENSE") if (folder / name).exists()]
    files = {name: (folder / name).read_bytes() for name in [*found, *papers]}
    return files | {"noise_data.csv": _csv(("file_path", "source"), lines)}


def _origin(clip: str) -> str:
    """Author and title without its ending: the same fire, uploaded as WAV and as MP3, is one source."""
    match = _CLIP.fullmatch(clip)
    if not match:
        return clip
    title = re.sub(r"\.(wav|mp3|aif|aiff|flac|ogg)$", "", match["title"], flags=re.IGNORECASE)
    return f"{match['author']}: {title}"


def _csv(header: tuple[str, ...], lines: list[tuple[Any, ...]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *lines])
    return text.getvalue().encode()


def _digests(files: Mapping[str, bytes]) -> dict[str, str]:
    return {name: digest_bytes(content) for name, content in files.items()}


def _settle(place: Lake, folder: str, files: Files) -> bool:
    """Write a folder of the lake; False where it stands there already. Landing is never changed."""
    if place.exists(folder):
        standing = {name: digest_bytes(place.read(folder, name)) for name in place.files(folder)}
        if standing == _digests(files):
            return False
        raise BadInput(f"lake {place.uri}: {folder} already holds something else; give another day, or another lake")
    with publish(place.fs, place.path(folder)) as staging:
        for name, content in files.items():
            (staging / name).parent.mkdir(exist_ok=True)
            (staging / name).write_bytes(content)
    return True
