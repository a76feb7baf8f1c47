"""Chat messages such as people send: questions, small jobs, pasted text; each of them differs from its beginning on.

They differ from the first words so that an engine's prefix cache does not make later ones cheaper than earlier ones.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

TEMPLATES = (
    "{subject}: what is that, in simple words?",
    "{subject}. I have an interview about it tomorrow. Which three questions should I expect, and what would a good "
    "short answer to the first one be?",
    "{subject} - give me two arguments for it and two against it, please. Keep it short.",
    "{subject} is the topic of my talk for a class of ten-year-olds. Could you write me an opening sentence that makes "
    "them curious?",
    "{subject}: I read that it costs more than it brings. Is that true? My neighbour says that it paid for itself "
    "within three years, but a colleague stopped after six months because nobody had time to look after it.",
    "{subject} came up in this mail I got: 'Hi, we would like to talk about it on Thursday at ten, but Anna is away "
    "until Friday and Jonas only has half an hour. Could you send us your notes beforehand, and say who should be "
    "there? The room on the second floor is taken, so we would have to meet online. Best, Mira'. Please write a "
    "friendly reply that moves the meeting to Friday afternoon.",
    "{subject} for beginners: how do I start this weekend without buying anything?",
    "{subject}... tell me a fun fact about it!",
)
SUBJECTS = (
    "Solar panels on a balcony",
    "Learning to play the cello",
    "Composting in a small garden",
    "Remote work in a team of five",
    "Train travel through the Alps",
    "Keeping bees in the city",
    "Sourdough bread",
    "Unit tests for old code",
    "Electric bicycles",
    "Reading the night sky",
    "Water meters in rented flats",
    "Chess openings",
    "Public libraries",
    "Heat pumps in old houses",
    "Running a first marathon",
    "Writing a will",
)


@dataclass(frozen=True)
class ChatPrompt:
    """A message and the most tokens its answer may have."""

    text: str
    max_tokens: int


def draw_prompts(seed: int, min_output_tokens: int = 24, max_output_tokens: int = 32) -> Iterator[ChatPrompt]:
    """Endless prompts in a seeded order; the first 128 all differ, later ones come again with a number before them."""
    generator = random.Random(seed)
    pairs = list(itertools.product(TEMPLATES, SUBJECTS))
    for round_ in itertools.count():
        generator.shuffle(pairs)
        for template, subject in pairs:
            text = template.format(subject=subject)
            length = generator.randint(min_output_tokens, max_output_tokens)
            yield ChatPrompt(text if round_ == 0 else f"({round_ + 1}) {text}", length)
