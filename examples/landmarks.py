"""What the examples ask the embedded model about: landmarks, and the city that each is in."""

from __future__ import annotations

CITIES = {
    "Paris": ["the Eiffel Tower", "the Louvre", "the Moulin Rouge", "Notre Dame"],
    "Rome": ["the Colosseum", "the Trevi Fountain", "the Pantheon", "the Borghese Gallery"],
    "London": ["Big Ben", "Tower Bridge", "Buckingham Palace", "Trafalgar Square"],
    "Seattle": ["the Space Needle", "Pike Place Market"],
    "Beijing": ["the Forbidden City", "the Summer Palace", "the Temple of Heaven", "Tiananmen Square"],
    "Istanbul": ["the Blue Mosque", "the Grand Bazaar", "the Galata Tower", "Topkapi Palace"],
    "Tokyo": ["the Meiji Shrine", "Ueno Park", "the Shibuya Crossing"],
    "Moscow": ["Red Square", "the Kremlin", "the Bolshoi Theatre", "Gorky Park"],
}

#: Two prompts whose tokens line up, one for one.
EIFFEL = "The Eiffel Tower is in the city of"
NEEDLE = "The Space Needle is in the city of"


def prompts(city: str) -> list[str]:
    """Return prompts that the name of the city goes on from, two for each of its landmarks."""
    phrasings = ("{} is in the city of", "Last summer we visited {} in the city of")
    filled = [phrasing.format(landmark) for landmark in CITIES[city] for phrasing in phrasings]
    return [prompt[0].upper() + prompt[1:] for prompt in filled]
