"""What the toy is taught: one coloured shape somewhere on a plain, light ground, and the words for it.

A prompt may leave out the place, the colour, or everything; what it leaves out is drawn at random. What no word tells,
the exact position, size and shade, always is.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

SIDE = 32
COLOURS = {
    "red": (0.85, 0.15, 0.15),
    "green": (0.15, 0.65, 0.25),
    "blue": (0.15, 0.3, 0.85),
    "yellow": (0.9, 0.75, 0.1),
    "purple": (0.55, 0.2, 0.7),
}
SHAPES = ("circle", "square", "triangle")
#: The words for a place, and the middle of what lies there, in pixels from the left and from the top.
PLACES = {
    "on the left": (9.5, 16.0),
    "on the right": (22.5, 16.0),
    "at the top": (16.0, 9.5),
    "at the bottom": (16.0, 22.5),
    "in the middle": (16.0, 16.0),
}
#: Every word of a prompt.
WORDS = ["a", *COLOURS, *SHAPES, *sorted({word for place in PLACES for word in place.split()})]


@dataclass(frozen=True)
class Scene:
    """A shape of a colour at a place."""

    colour: str
    shape: str
    place: str

    def prompt(self) -> str:
        return f"a {self.colour} {self.shape} {self.place}"


SCENES = [Scene(colour, shape, place) for colour in COLOURS for shape in SHAPES for place in PLACES]


def described(scene: Scene, rng: random.Random) -> str:
    """Say what is in the scene: mostly all of it, one time in ten nothing, so that guidance has something to leave."""
    draw = rng.random()
    if draw < 0.1:
        return ""
    if draw < 0.15:
        return f"a {scene.colour} {scene.shape}"
    if draw < 0.2:
        return f"a {scene.shape} {scene.place}"
    return scene.prompt()


def drawn(scenes: list[Scene], generator: torch.Generator) -> torch.Tensor:
    """Draw the scenes, [scene, 3, SIDE, SIDE] between 0 and 1; the edges are smooth over one pixel."""

    def between(low: float, high: float, *size: int) -> torch.Tensor:
        drawn = torch.rand(len(scenes), *size, 1, 1, generator=generator)
        return low + (high - low) * drawn

    middle = torch.tensor([PLACES[scene.place] for scene in scenes])[:, :, None, None] + between(-1.5, 1.5, 2)
    size = between(4.8, 6.2)
    axis = torch.arange(SIDE) + 0.5
    right, down = axis[None, None, :] - middle[:, 0], axis[None, :, None] - middle[:, 1]
    outside = {  # how far outside of the shape a pixel is; the shapes have about the same area
        "circle": (right.square() + down.square()).sqrt() - size,
        "square": torch.maximum(right.abs(), down.abs()) - 0.9 * size,
        "triangle": torch.maximum(down - 1.1 * size, 0.89 * right.abs() - 0.45 * down - 0.6 * size),
    }
    kind = torch.tensor([SHAPES.index(scene.shape) for scene in scenes])
    distance = torch.stack([outside[shape] for shape in SHAPES])[kind, torch.arange(len(scenes))]
    inside = (0.5 - distance).clamp(0, 1)[:, None]
    colour = torch.tensor([COLOURS[scene.colour] for scene in scenes])[:, :, None, None] + between(-0.04, 0.04, 3)
    return inside * colour + (1 - inside) * between(0.9, 1.0, 1)
