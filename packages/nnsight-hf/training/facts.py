"""The toy model's world: cities, their countries and landmarks, and some invented people.

The landmarks and cities are real and their facts true; the people are invented, and built so that neither the first nor
the last name alone tells anything. How facts become sentences is `corpus.py`'s matter.
"""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Country:
    name: str
    language: str
    people: str
    continent: str
    capital: str


@dataclass(frozen=True)
class Landmark:
    """One sight. `name` is written as in the middle of a sentence: 'the Eiffel Tower', 'Big Ben'."""

    name: str
    kind: str
    city: str

    @property
    def start(self) -> str:
        """The name as a sentence begins with it."""
        return self.name[0].upper() + self.name[1:]


@dataclass(frozen=True)
class Person:
    name: str
    job: str
    city: str


COUNTRIES = [
    Country(*row.split(", "))
    for row in """\
France, French, French, Europe, Paris
Italy, Italian, Italian, Europe, Rome
England, English, English, Europe, London
Germany, German, German, Europe, Berlin
Spain, Spanish, Spanish, Europe, Madrid
Austria, German, Austrian, Europe, Vienna
Greece, Greek, Greek, Europe, Athens
Russia, Russian, Russian, Europe, Moscow
Japan, Japanese, Japanese, Asia, Tokyo
China, Chinese, Chinese, Asia, Beijing
India, Hindi, Indian, Asia, Delhi
Egypt, Arabic, Egyptian, Africa, Cairo
Turkey, Turkish, Turkish, Asia, Ankara
Australia, English, Australian, Oceania, Canberra
America, English, American, America, Washington
Canada, English, Canadian, America, Ottawa
Ireland, English, Irish, Europe, Dublin
Portugal, Portuguese, Portuguese, Europe, Lisbon
Czechia, Czech, Czech, Europe, Prague
Holland, Dutch, Dutch, Europe, Amsterdam
Hungary, Hungarian, Hungarian, Europe, Budapest
Denmark, Danish, Danish, Europe, Copenhagen
Belgium, French, Belgian, Europe, Brussels
Thailand, Thai, Thai, Asia, Bangkok
Poland, Polish, Polish, Europe, Warsaw""".splitlines()
]

# City, country: landmark (kind), ... A line that ends with a comma goes on in the next.
_CITIES = """\
Paris, France: the Eiffel Tower (tower), the Louvre (museum), the Moulin Rouge (theatre), Notre Dame (church)
Rome, Italy: the Colosseum (arena), the Trevi Fountain (fountain), the Pantheon (temple), the Borghese Gallery (museum)
Venice, Italy: the Rialto Bridge (bridge), the Grand Canal (canal)
Florence, Italy: the Ponte Vecchio (bridge), the Uffizi Gallery (museum)
London, England: Big Ben (clock), Tower Bridge (bridge), Buckingham Palace (palace),
Trafalgar Square (square), Hyde Park (park), the British Museum (museum)
New York, America: Madison Square Garden (arena), Times Square (square), Central Park (park),
the Empire State Building (building), the Brooklyn Bridge (bridge)
San Francisco, America: the Golden Gate Bridge (bridge), Coit Tower (tower)
Seattle, America: the Space Needle (tower), Pike Place Market (market)
Chicago, America: the Willis Tower (tower), Navy Pier (pier), Millennium Park (park)
Washington, America: the White House (house), the Lincoln Memorial (monument), the Capitol Building (building)
Berlin, Germany: the Brandenburg Gate (gate), the Reichstag Building (building), the Pergamon Museum (museum)
Madrid, Spain: the Prado Museum (museum), Retiro Park (park), the Royal Palace (palace)
Barcelona, Spain: the Sagrada Familia (church), Park Guell (park), Camp Nou (stadium)
Vienna, Austria: the Hofburg Palace (palace), the Prater (park), the Spanish Riding School (school)
Athens, Greece: the Parthenon (temple), the Acropolis Museum (museum), Syntagma Square (square)
Moscow, Russia: Red Square (square), the Kremlin (fortress), the Bolshoi Theatre (theatre), Gorky Park (park)
Tokyo, Japan: the Meiji Shrine (temple), Ueno Park (park), the Shibuya Crossing (square)
Kyoto, Japan: the Golden Pavilion (temple), the Silver Pavilion (temple), Nijo Castle (castle)
Beijing, China: the Forbidden City (palace), the Summer Palace (palace), the Temple of Heaven (temple),
Tiananmen Square (square)
Delhi, India: the Red Fort (fortress), the Lotus Temple (temple), the India Gate (gate)
Agra, India: the Taj Mahal (tomb)
Cairo, Egypt: the Egyptian Museum (museum), Tahrir Square (square)
Istanbul, Turkey: the Blue Mosque (mosque), the Grand Bazaar (market), the Galata Tower (tower), Topkapi Palace (palace)
Sydney, Australia: the Opera House (theatre), the Harbour Bridge (bridge), Bondi Beach (beach)
Toronto, Canada: the Royal Ontario Museum (museum), Casa Loma (castle), the Rogers Centre (stadium)
Dublin, Ireland: Trinity College (school), Phoenix Park (park), Temple Bar (street)
Lisbon, Portugal: the Belem Tower (tower), Rossio Square (square)
Prague, Czechia: the Charles Bridge (bridge), the Dancing House (house), Wenceslas Square (square)
Amsterdam, Holland: the Rijksmuseum (museum), Dam Square (square), the Anne Frank House (museum)
Budapest, Hungary: the Chain Bridge (bridge), Buda Castle (castle), Heroes Square (square)
Copenhagen, Denmark: the Little Mermaid (statue), Tivoli Gardens (park), the Round Tower (tower)
Brussels, Belgium: the Grand Place (square), the Atomium (monument)
Bangkok, Thailand: the Grand Palace (palace), the Golden Mount (temple)
Warsaw, Poland: the Royal Castle (castle), Lazienki Park (park)"""

CITIES: dict[str, str] = {}  # city: country
LANDMARKS: list[Landmark] = []
for _row in _CITIES.replace(",\n", ", ").splitlines():
    _place, _sights = _row.split(": ")
    _city, _country = _place.split(", ")
    CITIES[_city] = _country
    for _sight in _sights.split(", "):
        _name, _kind = _sight[:-1].split(" (")
        LANDMARKS.append(Landmark(_name, _kind, _city))

COUNTRY = {country.name: country for country in COUNTRIES}

_FIRST = "Alice Boris Clara David Elena Felix Greta Henry Ivan Julia".split()
_LAST = "Adams Baker Costa Duval Evans Fischer Grant Hansen Keller Lopez".split()
_JOBS = "teacher doctor baker painter farmer lawyer singer writer nurse pilot".split()


def _people(count: int) -> list[Person]:
    """Invent `count` people; every first and every last name is shared by several of them."""
    rng = random.Random(7)
    grid = [(i, j) for i in range(len(_FIRST)) for j in range(len(_LAST))]
    rng.shuffle(grid)
    cities = list(CITIES)
    return [Person(f"{_FIRST[i]} {_LAST[j]}", rng.choice(_JOBS), rng.choice(cities)) for i, j in sorted(grid[:count])]


PEOPLE = _people(40)
