"""What a grid reads of an image, restated pixel by pixel, and the game that its rule plays."""

from __future__ import annotations


def weight(place: float, pixel: int, size: int) -> float:
    """How much of a pixel is read at a place between -1 and 1, which are the edges of the outermost ones."""
    return max(0.0, 1 - abs(((place + 1) * size - 1) / 2 - pixel))


def read(image: list[float], across: float, down: float) -> float:
    """Read an image of two rows of two pixels, with zeros around."""
    return sum(
        image[2 * row + column] * weight(down, row, 2) * weight(across, column, 2)
        for row in (0, 1)
        for column in (0, 1)
    )


def of_grid(x: list[float], x0: list[float]) -> list[list[float]]:
    """Return what four pixels and two coordinates give to what is read at one place."""
    (image, grid), (image0, grid0) = ((each[:4], each[4:]) for each in (x, x0))
    one = [[float(k == pixel) for k in range(4)] for pixel in range(4)]
    pixels = [(image[k] - image0[k]) * (read(one[k], *grid) + read(one[k], *grid0)) / 2 for k in range(4)]
    mean = [(a + b) / 2 for a, b in zip(image, image0, strict=True)]
    (across, down), (across0, down0) = grid, grid0
    first = read(mean, across, down) - read(mean, across0, down)
    first += read(mean, across, down0) - read(mean, across0, down0)
    second = read(mean, across, down) - read(mean, across, down0)
    second += read(mean, across0, down) - read(mean, across0, down0)
    return [[*pixels, first / 2, second / 2]]
