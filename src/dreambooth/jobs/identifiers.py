"""What a job leaves open, written out: the family, what trains, formats, and the identifier (rare
words of one token, and what is wrong with others). Never imports torch."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from typing import TYPE_CHECKING

from dreambooth.errors import JobError, UserError
from dreambooth.interfaces import AUTO
from dreambooth.interfaces.exporter import AUTOMATIC, INSTEAD
from dreambooth.plugins import component as made
from dreambooth.plugins.faults import named_where_it_ends
from dreambooth.plugins.slots import components

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dreambooth.component import Component
    from dreambooth.interfaces import Exporter, ModelInfo, Vocabulary
    from dreambooth.job import Job

LONGEST = 3
"""Letters of a proposal at most: longer single tokens are words or names."""
RARE = 0.5
"""How rare (`Vocabulary.words`) a word must be to mean little to the model."""
SELDOM = 0.9
"""From here on a token that can hardly be spoken (`ohwx`) does not count as a word."""
CHOSEN_FROM = 64
"""How many of the rarest `auto` chooses from."""
VOWELS = frozenset("aeiouy")
LETTERS = "qxzjvkw"
"""Proposals where a small vocabulary has no rare words: letters that are seldom a word."""

KNOWN = frozenset(
    """
    bbc bbq bch bkk blm bmp bmw bts cbc cbd cbs ccm ccp cctv cdc cfp chf cgi cms cng cnn cpr cpl crt
    csk csp css csv dc dds ddr dlc dm dmv dmx dns dps drm dsl dvd dvr fbs fck fdr fms fpl fps fpv
    ftp ft gbp gmc gmt gps gpx grl gsm gst gtx hbs hd hdd hdr hmv hp hpv hq hrh hrs hz jfk jpg jpn
    jr kgb kgs khz kjv kkk kpk kph ktm lbs lcd ldr llc lp lpg lsd ltd mb mbs mcd mlb mls mms mpg mph
    mr mrs ms mvp ncr nds nfc nfl nhl nhs nrg nsf ntv nyc pbs pc pcb pcs pcm pdf php phd plc pln pls
    pm png ppc ppl ppm ppt ppv prc ps psd pst ptv pvc pvp pvt qr rbc rcb rgb rmb rms rnb rpg rpm rps
    rss rt sdk sht sms snl sql srs ssd ssh ssl std stds str szn tbd tbh tbs tbt tcm tft thx tks tmc
    tmz tnt tsk tv tvs txt vfx vhs vip vpn vs vx wc wcs wdw wtf wts wwe wwf www xbox xl xmas xml xxl
    xxx brb brr grr hmm mmm nth pfft pss psst shh sht tsk nvm omg smh ffs fml btw idk
    """.split()
)
"""Abbreviations and words without a vowel that a model may well know."""


def proposals(vocabulary: Vocabulary) -> list[str]:
    """Return identifiers for a model, the rarest first (then by alphabet).

    Words of exactly one token, two or three letters, rare, without a vowel (so that they are no
    words) and no abbreviation that people write; where a small vocabulary has none, letters.
    """
    found = [
        (-rarity, word)
        for word, rarity in vocabulary.words().items()
        if 2 <= len(word) <= LONGEST
        and rarity >= RARE
        and not VOWELS & set(word)
        and word not in KNOWN
        and word != "sks"
        and vocabulary.split(word) == [word]
    ]
    if found:
        return [word for _, word in sorted(found)]
    return [letter for letter in LETTERS if vocabulary.split(letter) == [letter]]


def judge(identifier: str, vocabulary: Vocabulary) -> list[str]:
    """Return what speaks against an identifier, a sentence each; nothing for a good one."""
    word = identifier.casefold()
    if word == "sks":
        return [
            '"sks" is a rifle to many models (the SKS carbine), which shows through in what they '
            "draw"
        ]
    pieces = vocabulary.split(identifier)
    if len(pieces) > 1:
        # Single letters mean next to nothing; longer pieces bring meanings of their own.
        if all(len(piece) == 1 for piece in pieces):
            return []
        return [
            f'"{identifier}" is {len(pieces)} tokens to this model ({" + ".join(pieces)}), each '
            "with a meaning of its own that the subject has to displace"
        ]
    rarity = vocabulary.words().get(word)
    if rarity is None or len(word) == 1:
        return []
    if rarity < RARE or word in KNOWN or _reads_as_word(word, rarity):
        return [
            f'"{identifier}" is a word this model knows, and what it means will mix with the '
            "subject"
        ]
    return []


def _reads_as_word(word: str, rarity: float) -> bool:
    """Guess whether a token is a word or a name: it can be spoken, or is not rare enough."""
    vowels = sum(letter in VOWELS for letter in word)
    if len(word) < LONGEST or not vowels:
        return False
    clusters = re.split(f"[{''.join(sorted(VOWELS))}]", word)
    return rarity < SELDOM or vowels > 1 or max(map(len, clusters)) < 3


def learns_word(job: Job) -> bool:
    """Say whether the job's policy gives the identifier tokens of its own."""
    return job.freezing.learns_word()


def warnings(job: Job) -> list[str]:
    """Return what speaks against a job's model and identifier, a sentence each.

    Nothing where the model cannot be read: `checks.preflight` says what is wrong with it.
    """
    try:
        distilled = job.model.describe().distilled_warning
        vocabulary = job.model.vocabulary()
    except (UserError, OSError):
        return []
    found = [distilled] if distilled else []
    if learns_word(job) or job.subject.identifier == AUTO or vocabulary is None:
        return found
    return found + judge(job.subject.identifier, vocabulary)


@named_where_it_ends()
def with_identifier(job: Job) -> Job:
    """Return the job with its identifier chosen, where it says `auto`.

    A function of the tokenizer and `train.seed` alone, so every life of a run trains the same
    word, and the resolved job names it. `JobError` where the model does not say how it splits
    text, or has no rare word.
    """
    if job.subject.identifier != AUTO:
        return job
    vocabulary = job.model.vocabulary()
    if vocabulary is None:
        raise JobError(
            f'subject.identifier: model kind "{job.model.kind}" does not say how it splits text',
            "name an identifier, a rare short word",
        )
    chosen = _new_word(job, vocabulary) if learns_word(job) else _rare_word(job, vocabulary)
    subject = job.subject.model_copy(update={"identifier": chosen})
    return job.model_copy(update={"subject": subject})


def _rare_word(job: Job, vocabulary: Vocabulary) -> str:
    words = proposals(vocabulary)[:CHOSEN_FROM]
    if not words:
        raise JobError(
            "subject.identifier: the model's vocabulary has no rare short word to choose",
            "name an identifier yourself",
        )
    digest = hashlib.sha256(f"identifier:{job.train.seed}".encode()).digest()
    return words[int.from_bytes(digest[:8], "big") % len(words)]


def _new_word(job: Job, vocabulary: Vocabulary) -> str:
    stem = "-".join(["my", *job.subject.class_noun.lower().split()])
    word, number = f"<{stem}>", 1
    while vocabulary.has(word):
        number += 1
        word = f"<{stem}-{number}>"
    return word


def settled(job: Job) -> Job:
    """Return the job with every `auto` of its components and its identifier written out.

    A function of the job and the model's JSON files alone, so that every life of a run is the same
    job, and a run that began with `auto` equals one that named what it came to. `JobError` where
    an identifier cannot be chosen.
    """
    return with_identifier(by_model(job))


def by_model(job: Job) -> Job:
    """Return the job with what its components take from the model written out.

    A model that cannot be read leaves them as they are: `checks.preflight` says what is wrong.
    """
    changed: dict[str, Component] = {}
    try:
        model = job.model.settled(job.model.describe)
        if model is not job.model:
            changed["model"] = model
        info: Callable[[], ModelInfo] = cache(model.describe)
        for at, component in components(job):
            if len(at) == 1 and at[0] != "model":
                found = component.settled(info)
                if found is not component:
                    changed[str(at[0])] = found
    except (UserError, OSError):
        return job
    return job.model_copy(update=changed) if changed else job


def automatic_exporters(job: Job) -> list[Exporter]:
    """Return the exporters `exports: auto` can come to, for this job's freezing policy."""
    if job.exporting.formats != "auto":
        return []
    chosen: list[Exporter] = [
        made("exporter", AUTOMATIC[k]) for k in sorted(job.freezing.artifacts) if k in AUTOMATIC
    ]
    return [
        made("exporter", INSTEAD[e.kind]) if e.kind in INSTEAD and e.refusal(job.freezing) else e
        for e in chosen
    ]


def chosen_exporters(job: Job) -> Sequence[Exporter]:
    """Return the job's exporters, those that `auto` can come to written out."""
    formats = job.exporting.formats
    return automatic_exporters(job) if formats == "auto" else formats
