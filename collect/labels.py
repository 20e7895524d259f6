"""Labels from the inference app: a later diagnosis makes a past inference a recording to train on.

A durable JetStream consumer: a message is acknowledged when its recording and label are in the ledger, so a kill costs
nothing but a repetition, which changes nothing.
"""

import asyncio
import json
import logging
import posixpath
from pathlib import Path
from typing import Annotated, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from nats.aio.msg import Msg
from nats.js.api import ConsumerConfig
from pydantic import BaseModel, Field, ValidationError

from access import trail
from collect import receive
from collect.facts import Facts, Label, Wrong, harmless
from collect.facts import read as read_facts
from collect.landing import settle
from collect.ledger import Declined
from collect.settings import Settings
from serve.app import streams
from serve.gateway.settings import Mistake
from spira_train.outcome import BadInput
from spira_train.store import Lake

DURABLE = "collect"
ACK_SECONDS, AGAIN_SECONDS = 10.0, 5.0  # one that a killed service held comes again after the first
log = logging.getLogger("spira.collect")


class Entered(BaseModel):
    """What the app says. audio: below SPIRA_APP_AUDIO. facts: as `Facts`; its subject is a pseudonym already."""

    inference_id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    label: Label
    why: str = ""
    who: Annotated[str, Field(max_length=64)]
    audio: str
    facts: dict[str, Any]
    day: str


async def follow(settings: Settings) -> None:
    """Take labels until cancelled; where NATS is away, wait for it."""
    while True:
        try:
            await _listen(settings)
        except (*streams.LOST, Mistake) as error:
            log.warning("NATS at %s: %s; trying again", settings.nats, streams.named(error))
        await asyncio.sleep(AGAIN_SECONDS)


async def _listen(settings: Settings) -> None:
    async with streams.linked(settings.nats, settings.nats_token, "collect") as (link, gone):
        # One at a time: a correction must not be overtaken by what it corrects, whatever is delivered again.
        consumer = ConsumerConfig(durable_name=DURABLE, ack_wait=ACK_SECONDS, max_deliver=-1, max_ack_pending=1)
        labels = await link.pull_subscribe(streams.ENTERED, durable=DURABLE, stream=streams.LABELS, config=consumer)
        while not gone.is_set():
            try:
                messages = await labels.fetch(1, timeout=5)
            except TimeoutError:
                continue
            for message in messages:
                await _take(settings, message)


async def _take(settings: Settings, message: Msg) -> None:
    try:
        await asyncio.to_thread(take, settings, message.data)
    except (Mistake, ValidationError, ValueError, Declined, FileNotFoundError) as error:
        # It would not be better the next time. What was sent is not said: it may be a patient's.
        word = getattr(error, "reason", type(error).__name__)
        log.error("a label was refused: %s", word)
        trail.note(settings.trail_file, "app", "label_refused", reason=str(word))
        await message.term()
    except Exception as error:  # noqa: BLE001 - a full disk, a lake that is away: it is tried again
        log.error("a label has to wait: %s", type(error).__name__)
        await message.nak(delay=AGAIN_SECONDS)
    else:
        await message.ack()


def take(settings: Settings, content: bytes) -> receive.Receipt:
    """Put the recording of a labelled inference and its label into the ledger, and settle its day.

    Raises `ValueError` and its like where the message is wrong, `FileNotFoundError` where the recording is gone.
    """
    entered = Entered.model_validate(json.loads(content))
    day = receive.valid_day(entered.day)
    known = set(Facts.model_fields) - {"label"}
    fields = {name: value for name, value in entered.facts.items() if name in known and value is not None}
    if not fields.get("consent_training"):
        raise Wrong("consent_training", "consent", "is not given")
    facts = read_facts(fields | {"consent": True})
    lake = Lake(settings.lake)
    kept = receive.receive(lake, None, sound(settings.audio, entered.audio), facts, entered.who, day=day)
    try:
        why = harmless("why", entered.why)
    except Wrong:  # the label is worth more than the words
        why = ""
    given = receive.label(lake, kept.id, entered.label, entered.who, why)
    try:
        settle(lake, given.day)
    except BadInput as error:  # others delivered something unreadable for that day; the ledger has the label
        log.error("%s", error)
    if not given.again:
        trail.note(
            settings.trail_file,
            entered.who,
            "labelled",
            id=given.id,
            label=entered.label,
            inference=entered.inference_id,
        )
    return given


def sound(audio: str, path: str) -> bytes:
    """The recording at `path` below `audio`; raises `ValueError` where the path leaves it."""
    fs, root = fsspec.core.url_to_fs(audio)
    plain = posixpath.normpath(path)
    if plain.startswith(("/", "..")) or "\0" in path:
        raise ValueError("the path of the recording leaves the folder of the app")
    file = f"{root}/{plain}"
    if isinstance(fs, LocalFileSystem) and not Path(file).resolve().is_relative_to(Path(root).resolve()):
        raise ValueError("the path of the recording leaves the folder of the app")
    return bytes(fs.cat_file(file))
