"""Say what a picture shows, by plain arithmetic on its pixels: nothing here is learned."""

from __future__ import annotations

import torch

from shapes import COLOURS, PLACES, Scene

#: The share of its bounding box that a shape fills.
FILLED = {"triangle": 0.5, "circle": torch.pi / 4, "square": 1.0}
CONTRAST = 0.6  # of a shape with the ground, as the distance of two colours
SMALLEST, LARGEST = 40, 220  # pixels that are a shape
LONGEST = 17  # pixels of its side; two shapes are longer together


def seen(image: torch.Tensor) -> Scene | None:
    """Say what one image, [3, height, width] between 0 and 1, shows; None where there is not one plain shape."""
    border = torch.cat([image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]], dim=1)
    ground = border.median(dim=1).values
    contrast = (image - ground[:, None, None]).norm(dim=0)
    shape = contrast > contrast.max() / 2
    area = int(shape.sum())
    if contrast.max() < CONTRAST or not SMALLEST <= area <= LARGEST:
        return None
    down, right = shape.nonzero(as_tuple=True)
    box = torch.stack([torch.stack(right.aminmax()), torch.stack(down.aminmax())])
    colour = image[:, shape].median(dim=1).values
    middle, size = (box.sum(dim=1) + 1) / 2, box.diff() + 1
    if size.max() > LONGEST:
        return None
    filled = float(area / size.prod())
    return Scene(
        min(COLOURS, key=lambda name: float((colour - torch.tensor(COLOURS[name])).norm())),
        min(FILLED, key=lambda name: abs(filled - FILLED[name])),
        min(PLACES, key=lambda name: float((middle - torch.tensor(PLACES[name])).norm())),
    )
