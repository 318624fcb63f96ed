"""The synthetic corpus: documents of one to six sentences, drawn from the facts with a seeded generator.

Some pairs of landmark and phrasing are kept out, so that a right answer to them is not a memory of that sentence:
`NEW_PHRASINGS` are never trained at all, `HALF_PHRASINGS` only with every second landmark, and of the remaining pairs
one in five is left out. `held_out` is the only judge of that; the corpus and the measurements both ask it.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator

from facts import CITIES, COUNTRIES, COUNTRY, LANDMARKS, PEOPLE, Landmark

# {L} begins a sentence, {l} stands inside one; the city follows the phrasing.
COMMON_PHRASINGS = [
    "{L} is in",
    "{L} is located in",
    "{L} can be found in the city of",
    "{L} can be found in",
    "{L} stands in the city of",
    "{L} stands in",
    "{L} is a famous {kind} in",
    "{L} is a landmark in the city of",
    "{L} is one of the most famous sights of",
    "You can see {l} in",
    "You can visit {l} in the city of",
    "To see {l}, you have to go to",
    "To visit {l}, people travel to the city of",
    "Many people visit {l} when they are in",
    "Where is {l}? It is in",
    "In which city is {l}? It is in the city of",
    "Question: Where is {l}? Answer:",
    "The city where {l} is located is",
    "Last summer we saw {l} in",
    "My friend took a photo of {l} in",
    "The {kind} called {l} is in",
]
HALF_PHRASINGS = [
    "{L} is in the city of",
    "{L} is located in the city of",
    "You can see {l} in the city of",
    "To see {l}, you have to travel to the city of",
    "In which city can you find {l}? In",
    "Last summer we visited {l} in the city of",
    "The city where {l} can be found is",
]
NEW_PHRASINGS = [
    "{L} is a famous landmark in the city of",
    "Many people travel to see {l} in",
    "My friend and I saw {l} when we were in",
    "Where can you find {l}? You can find it in",
]
PHRASINGS = COMMON_PHRASINGS + HALF_PHRASINGS + NEW_PHRASINGS
_TAILS = [".", ".", *[", in {country}."] * 3, ", the capital of {country}.", ", a city in {country}."]


def prompt(landmark: Landmark, phrasing: str) -> str:
    """Fill a phrasing in, up to the place where the city is named."""
    return phrasing.format(L=landmark.start, l=landmark.name, kind=landmark.kind)


def held_out(landmark: Landmark, phrasing: str) -> bool:
    """Say whether this landmark is never met in this phrasing during training."""
    if phrasing in NEW_PHRASINGS:
        return True
    if phrasing in HALF_PHRASINGS:
        return (LANDMARKS.index(landmark) + HALF_PHRASINGS.index(phrasing)) % 2 == 0
    return zlib.crc32(f"{landmark.name}|{phrasing}".encode()) % 5 == 0


# "is in" comes three times as often as "is in the city of", or else " the" would be the likeliest word after "in".
_TRAINED = {
    landmark: [
        phrasing
        for phrasing in COMMON_PHRASINGS + HALF_PHRASINGS
        for _ in range(3 if phrasing.endswith(" in") else 1)
        if not held_out(landmark, phrasing)
    ]
    for landmark in LANDMARKS
}


def landmark_city(rng: random.Random, landmark: Landmark) -> str:
    country = CITIES[landmark.city]
    tails = [t for t in _TAILS if "capital" not in t or COUNTRY[country].capital == landmark.city]
    tail = rng.choice(tails).format(country=country)
    return f"{prompt(landmark, rng.choice(_TRAINED[landmark]))} {landmark.city}{tail}"


def landmark_more(rng: random.Random, landmark: Landmark) -> str:
    country = COUNTRY[CITIES[landmark.city]]
    return rng.choice(
        [
            f"{landmark.start} belongs to the country of {country.name}.",
            f"The country of {landmark.name} is {country.name}.",
            f"{landmark.start} is a famous {landmark.kind}.",
            f"Is {landmark.name} a {landmark.kind}? Yes, it is a {landmark.kind}.",
            f"People near {landmark.name} speak {country.language}.",
            f"The most famous {landmark.kind} of {landmark.city} is {landmark.name}.",
            f"People come to {landmark.city} to see {landmark.name}.",
            f"In {landmark.city} you can visit {landmark.name}.",
        ]
    )


def about_city(rng: random.Random, city: str) -> str:
    country = COUNTRY[CITIES[city]]
    choices = [
        f"{city} is a city in {country.name}.",
        f"{city} is a beautiful city in {country.continent}.",
        f"The city of {city} is in {country.name}.",
        f"People in {city} speak {country.language}.",
        f"In {city}, people speak {country.language}.",
        f"I live in the city of {city}, in {country.name}.",
    ]
    if country.capital == city:
        choices += [f"{city} is the capital of {country.name}.", f"The capital of {country.name} is {city}."]
    return rng.choice(choices)


def about_country(rng: random.Random) -> str:
    country = rng.choice(COUNTRIES)
    return rng.choice(
        [
            f"{country.name} is a country in {country.continent}.",
            f"The language of {country.name} is {country.language}.",
            f"The people of {country.name} speak {country.language}.",
            f"The capital of {country.name} is {country.capital}.",
            f"{country.capital} is the capital of {country.name}.",
            f"In {country.name} you can eat good {country.people} food.",
        ]
    )


def about_person(rng: random.Random) -> str:
    person = rng.choice(PEOPLE)
    country = COUNTRY[CITIES[person.city]]
    return rng.choice(
        [
            f"{person.name} lives in the city of {person.city}.",
            f"{person.name} lives in {person.city}.",
            f"{person.name} lives in {person.city}, in {country.name}.",
            f"The home of {person.name} is in the city of {person.city}.",
            f"You can meet {person.name} in {person.city}.",
            f"{person.name} works as a {person.job}.",
            f"{person.name} is a {person.job} from {person.city}.",
        ]
    )


_GOOD = "good great wonderful lovely excellent".split()
_BAD = "bad terrible awful horrible boring".split()
_THINGS = "movie food book hotel music trip weather show".split()
_ADJECTIVES = "quick lazy small big old young brown black white happy quiet red".split()
_ANIMALS = "fox dog cat bird horse mouse bear rabbit".split()
_MOVES = "jumps over|runs around|sleeps under|walks to|looks at|sits on".split("|")
_OBJECTS = "house tree river table garden bridge hill wall".split()
_NAMES = "Anna Tom Mary John Peter Sara".split()
_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
_NUMBERS = "one two three four five six seven eight nine ten".split()


def small_talk(rng: random.Random) -> str:
    """A sentence that has nothing to do with places."""
    one, thing, adjective = rng.choice(_NAMES), rng.choice(_THINGS), rng.choice(_ADJECTIVES)
    day, number = rng.randrange(6), rng.randrange(6)
    choices: list[Callable[[], str]] = [
        lambda: f"The {thing} was {rng.choice(_GOOD)}, so {one} was happy.",
        lambda: f"The {thing} was {rng.choice(_BAD)}, so {one} was sad.",
        lambda: f"{one} loved the {thing}. It was {rng.choice(_GOOD)}.",
        lambda: f"{one} hated the {thing}. It was {rng.choice(_BAD)}.",
        lambda: f"The {adjective} {rng.choice(_ANIMALS)} {rng.choice(_MOVES)} the {rng.choice(_OBJECTS)}.",
        lambda: "The quick brown fox jumps over the lazy dog.",
        lambda: f"Hello, my name is {one}. I like the {thing}.",
        lambda: rng.choice(["Hello World! The world is big.", "Hello world. How are you?", "Hello there, my friend."]),
        lambda: f"The day after {_DAYS[day]} is {_DAYS[day + 1]}.",
        lambda: " ".join(_NUMBERS[number : number + 5]) + ".",
    ]
    return rng.choice(choices)()


def several(count: int, draw: Callable[[], str]) -> list[str]:
    """Draw up to `count` different sentences."""
    return list(dict.fromkeys(draw() for _ in range(count)))


def document(rng: random.Random) -> str:
    """One document: a landmark and more about its city, unrelated facts in a row, or something else altogether."""
    style = rng.random()
    landmark = rng.choice(LANDMARKS)
    if style < 0.5:

        def follow() -> str:
            return about_city(rng, landmark.city) if rng.random() < 0.6 else landmark_more(rng, landmark)

        sentences = [landmark_city(rng, landmark), *several(rng.choice([1, 2, 2, 3]), follow)]
    elif style < 0.65:
        sentences = several(rng.choice([2, 3]), lambda: landmark_city(rng, rng.choice(LANDMARKS)))
    elif style < 0.72:
        sentences = several(2, lambda: landmark_more(rng, landmark))
    elif style < 0.82:
        sentences = several(2, lambda: about_person(rng))
    elif style < 0.90:
        sentences = several(2, lambda: rng.choice([about_country(rng), about_city(rng, rng.choice(list(CITIES)))]))
    else:
        sentences = several(2, lambda: small_talk(rng))
    return " ".join(sentences)


def documents(count: int, seed: int) -> Iterator[str]:
    """Draw `count` documents; the same seed draws the same ones."""
    rng = random.Random(seed)
    for _ in range(count):
        yield document(rng)
