"""An invented town seen from the air: georeferenced scenes with exact labels, from a seed alone.

Three maps grow together: colour, height and class. First come fields, water and streets on a bent
grid, then houses, trees and cars as small patches. Last, the sun, which is the same in every
scene, throws the shadows of the height map. So a network can learn shadows and the light on roofs
from the labels, but never the colour of one roof.

Every number comes from ``ganlab.randomness``, curves are rounded, and pixels are made with exactly
rounded operations only (+, -, *, /, square root), so that a seed gives the same pixels on any
machine and with any version of numpy. Lengths are metres.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from affine import Affine
from rasterio.errors import RasterioError

from ganlab.config import ToytownConfig
from ganlab.data.geotiff import write_geotiff as write_geotiff
from ganlab.data.geotiff import write_pixels
from ganlab.data.placing import Refusal, placed
from ganlab.errors import InputError
from ganlab.files import exclusive
from ganlab.randomness import uniforms
from ganlab.together import FINISHED

Array = npt.NDArray[Any]
Place = tuple[slice, ...]

CLASSES = ("ground", "building", "road", "tree", "water")
GROUND, BUILDING, ROAD, TREE, WATER = range(5)
TO_SUN = (0.6, 0.8)
"""Unit vector to the sun, (right, down) in the image: azimuth 143 degrees, height 45 degrees."""
SKY = (0.45, 0.49, 0.57)
"""What is left of red, green and blue in a shadow: the light of the sky."""
CRS = "EPSG:32633"
ADVICE = "remove it or give another folder or seed"
REFUSAL = Refusal(f"exists already; {ADVICE}", ADVICE)

_HOMES, _SHOPS, _PARK, _WOOD, _FIELD, _MEADOW = range(6)
_TREES = np.array([0.09, 0.03, 0.14, 1.0, 0.0015, 0.03])  # density by kind of land
_LAND = [[(108, 120, 80)], [(112, 122, 84)], [(102, 120, 74)], [(72, 82, 54)]]
_LAND += [[(188, 170, 124), (172, 156, 104), (110, 126, 74), (130, 142, 84), (138, 116, 94)]]
_LAND[_FIELD] += [(152, 130, 106), (94, 114, 66), (160, 158, 112)]
_LAND += [[(118, 132, 84), (132, 138, 92), (112, 126, 76)]]
_LAWNS = [(106, 122, 76), (118, 130, 84), (98, 112, 70), (130, 132, 94)]
_ROOFS = [(150, 92, 72), (134, 82, 66), (158, 100, 78), (120, 76, 64), (112, 90, 78)]
_ROOFS += [(94, 95, 100), (118, 117, 117), (82, 84, 92), (142, 112, 94), (158, 152, 144)]
_FLAT_ROOFS = [(184, 182, 177), (162, 160, 157), (142, 140, 138), (198, 197, 193)]
_PAVING = [(168, 163, 154), (148, 144, 139), (178, 166, 147)]
_CARS = [(210, 210, 208), (178, 181, 186), (84, 86, 92), (62, 64, 70), (138, 60, 54), (70, 86, 122)]
_LEAVES = [(84, 104, 56), (73, 94, 53), (94, 108, 62), (66, 84, 53), (101, 110, 62)]
_NEEDLES = [(52, 71, 54), (57, 75, 53)]


class _Dice(list[float]):
    """The random numbers of one object, used up one after the other."""

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.pop(0)

    def chance(self, probability: float) -> bool:
        return self.pop(0) < probability

    def pick(self, colours: Sequence[tuple[int, int, int]]) -> Array:
        """One of the colours, slightly changed: ``(3, 1, 1)``."""
        return _rgb(*colours[int(self.between(0, len(colours)))]) * self.between(0.92, 1.08)


def _dice(seed: int, purpose: str, objects: npt.ArrayLike = 0, count: int = 48) -> list[_Dice]:
    return [_Dice(row) for row in uniforms(seed, 0, objects, purpose, count).tolist()]


def _rgb(red: float, green: float, blue: float) -> Array:
    return np.array([red, green, blue], np.float32).reshape(3, 1, 1)


def _exact(values: npt.ArrayLike) -> Array:
    """Rounded, so that the last bits of sine and cosine, which depend on the machine, go."""
    return (np.round(np.asarray(values) * 4096) / 4096).astype(np.float32)


def _enlarge(grid: Array, factor: int, size: int, smooth: bool = False) -> Array:
    """Bilinear interpolation of a small grid: ``(n, n)`` to ``(size, size)``."""
    t = np.arange(factor, dtype=np.float32) / np.float32(factor)
    t = t * t * (3 - 2 * t) if smooth else t
    wide = grid[:, :-1, None] + (grid[:, 1:] - grid[:, :-1])[:, :, None] * t
    wide = wide.reshape(len(grid), -1)[:, :size]
    high: Array = wide[:-1, None] + (wide[1:] - wide[:-1])[:, None] * t[:, None]
    return high.reshape(-1, size)[:size]


class _Town:
    """The three maps of a scene, and two textures that objects use where they lie."""

    def __init__(self, seed: int, size: int, resolution: float) -> None:
        self.seed, self.size, self.resolution = seed, size, resolution
        self.extent = size * resolution
        self.noise = {}  # value noise in [-1, 1] by the size of its lumps
        for metres in (0.5, 1.2, 4, 14, 50):
            cell = max(1, round(metres / resolution))
            n = size // cell + 2
            grid = 2 * uniforms(seed, 0, cell, "noise", n * n).astype(np.float32).reshape(n, n) - 1
            self.noise[metres] = _enlarge(grid, cell, size, smooth=True)
        self.fine = 0.6 * self.noise[0.5] + 0.6 * self.noise[1.2]
        self.coarse = 0.5 * self.noise[4] + 0.4 * self.noise[14] + 0.5 * self.noise[50]
        self.colour = np.zeros((3, size, size), np.float32)
        self.height = np.zeros((size, size), np.float32)
        self.labels = np.zeros((size, size), np.uint8)
        self.middles = (np.arange(size) + 0.5) * resolution  # of the pixels
        y, x = np.mgrid[0 : size // 8 + 2, 0 : size // 8 + 2] * (8 * resolution)
        self.z = x + 1j * y - (0.5 + 0.5j) * self.extent  # every eighth pixel, from the middle

    def patch(self, x: float, y: float, radius: float) -> tuple[Place, Array, Array]:
        """A square around (x, y), and the distances from there: dx ``(w,)``, dy ``(h, 1)``."""
        ends = [[int((c + r) / self.resolution) for r in (-radius, radius)] for c in (y, x)]
        rows, columns = (slice(max(0, start), stop + 2) for start, stop in ends)
        dx, dy = self.middles[columns] - x, self.middles[rows] - y
        return (rows, columns), dx.astype(np.float32), dy.astype(np.float32)[:, None]

    def paint(
        self, where: Array, colour: Any, at: Place = (), height: Any = None, label: Any = None
    ) -> None:
        """Change the three maps, or their part ``at``, where a mask is true."""
        maps = (self.colour[:, *at], colour), (self.height[at], height), (self.labels[at], label)
        for pixels, values in maps:
            if values is not None:
                np.copyto(pixels, values, where=where)

    def plan(self) -> None:
        """Bend a grid of streets: lines of constant u or v, the main road v = 0; plan its cells."""
        (dice,), extent = _dice(self.seed, "plan"), self.extent
        z = self.z * np.exp(1j * dice.between(-0.6, 0.6))
        bend = np.sin(z.real / (dice.between(0.13, 0.2) * extent + 25) + dice.between(0, 6.28))
        bend = dice.between(0.03, 0.06) * extent * bend
        bend = bend / (1 + (z.imag / (0.15 * extent + 60)) ** 2) + 5 * np.sin(z.real / 70)
        bent = z.real + 7 * np.sin(z.imag / 90 + dice.between(0, 6.28)), z.imag + bend
        self.streets = [_enlarge(_exact(w), 8, self.size) for w in bent]
        steps = uniforms(self.seed, 0, np.arange(4), "lines", 4 + int(extent / 60))
        steps = np.cumsum(np.array([[72], [72], [52], [52]]) + [[50], [50], [24], [24]] * steps, 1)
        self.lines = [_exact([*-b[::-1], 0, *a]) for b, a in (steps[:2], steps[2:])]
        self.lines[0] += np.float32(round(dice.between(-40, 40)))
        u, v = (np.append(line, line[-1] + 80) - 40 for line in self.lines)
        self.chance = uniforms(self.seed, 0, np.arange(len(u)), "cells", 8 * len(v))
        self.chance = self.chance.reshape(len(u), len(v), 8)
        first, second = self.chance[..., 0], self.chance[..., 1]
        far = u[:, None] ** 2 + 1.5 * v**2 > ((0.4 * extent + 60) * (0.75 + 0.4 * first)) ** 2
        inside = np.select([second < 0.07, second < 0.13], [_PARK, _SHOPS], _HOMES)
        outside = np.select([second < 0.2, second < 0.4], [_WOOD, _MEADOW], _FIELD)
        self.kinds = np.where(far, outside, inside)
        streets = zip(self.lines, self.streets, strict=True)
        self.strips = [np.searchsorted(line, w) for line, w in streets]
        self.cell = self.strips[0] * len(v) + self.strips[1]

    def fields(self) -> None:
        """Colours and furrows by cell, and grass that is dry in places."""
        kinds, noise, cell = self.kinds, self.noise, self.cell
        picked, deep, wide, turned = (self.chance[..., i] for i in range(2, 6))
        deep = np.where((kinds == _FIELD) & (deep < 0.85), 0.03 + 0.05 * deep, 0)
        furrow: Array = np.zeros(1, np.float32)
        for w, along in zip(self.streets, (turned < 0.5, turned >= 0.5), strict=True):
            rows = np.where(along, 1, 0.5 * turned - 0.25) / (1.6 + 2.2 * wide)
            furrow = furrow + rows.astype(np.float32).ravel()[cell] * w
        furrow = np.abs(4 * (furrow - np.floor(furrow)) - 2) - 1
        tone = 1 + 0.07 * self.fine + 0.09 * self.coarse
        tone *= 1 + deep.astype(np.float32).ravel()[cell] * furrow
        dry = 0.3 * self.fine + 0.4 * noise[4] + 0.4 * noise[14] + 0.6 * noise[50] - 0.2
        dry = np.clip(dry, 0, 0.6)
        lands = zip((_LAND[kind] for kind in kinds.flat), picked.flat, strict=True)
        colours = np.array([land[int(pick * len(land))] for land, pick in lands], np.float32)
        self.colour[:] = colours.T[:, cell] * tone * (1 + _rgb(0.22, 0.10, 0.04) * dry)

    def water(self) -> Array:
        """A river that winds past the middle, or a pond; returns the distance to the shore."""
        (dice,), extent = _dice(self.seed, "water"), self.extent
        z = self.z * np.exp(1j * dice.between(0, 6.28))
        if dice.chance(0.6):
            along = z.real / (0.11 * extent + 8)
            middle = 0.06 * np.sin(along) + 0.02 * np.sin(2.3 * along) - dice.between(0.14, 0.32)
            shore = np.abs(z.imag + middle * extent) - dice.between(6, 13) - 2 * np.sin(1.7 * along)
        else:
            radius = dice.between(0.06, 0.11) * extent + 8
            shore = np.abs(z.real * dice.between(0.6, 1) + 1j * (z.imag - 0.27 * extent))
            shore = shore - radius * (1 + 0.15 * np.sin(3 * z.real / radius + 1))
        far = _enlarge(_exact(shore), 8, self.size) + 1.5 * self.noise[14] + 0.6 * self.noise[4]
        self.paint(far < 4, self.colour * np.float32(0.85))
        self.paint(far < 1.2, _rgb(150, 140, 114) * (1 + 0.07 * self.fine + 0.09 * self.coarse))
        deep = _rgb(96, 106, 92) - np.clip(far / -12, 0, 1) * _rgb(38, 28, 12)
        self.paint(far < 0, deep * (1 + 0.03 * self.noise[50] + 0.012 * self.fine), label=WATER)
        return far

    def roads(self, far: Array) -> None:
        """Streets are paved where the town is; elsewhere they are tracks between the fields."""
        town, sides = self.kinds <= _PARK, []
        for axis, (line, w) in enumerate(zip(self.lines, self.streets, strict=True)):
            near, beside = np.searchsorted((line[:-1] + line[1:]) / 2, w), (town, town.T)[axis]
            paved = beside[:-1] | beside[1:]
            paved &= uniforms(self.seed, axis, np.arange(len(line)), "gaps", paved.shape[1]) > 0.06
            paved[(line == 0) & (axis == 1)] = True
            main = (line[near] == 0) & (axis == 1)
            edge = np.abs(w - line[near]) - np.where(main, np.float32(4.3), np.float32(2.9))
            sides.append((edge, paved[near, self.strips[1 - axis]], (far > 3) | main))
        track = _rgb(150, 138, 112) * (1 + 0.07 * self.fine)
        kerb, asphalt = 158 + 5 * self.fine, 114 + 3 * self.fine + 8 * self.coarse
        layers = (-1.3, False, track, None), (1.7, True, kerb, None), (0.0, True, asphalt, ROAD)
        for reach, firm, colour, label in layers:
            for edge, paved, passes in sides:
                self.paint((edge < reach) & (paved == firm) & passes, colour, label=label)
        (other, crossing, _), (edge, _, _) = sides
        dash = self.streets[0] / 7 - np.floor(self.streets[0] / 7) < 0.45
        marks = (edge < -4.14) & dash | (np.abs(edge + 0.4) < 0.14)
        self.paint(main & marks & ~((other < 0.5) & crossing), 195)
        self.edge = np.minimum(other, edge)
        self.paved = np.where(other < edge, *(paved & passes for _, paved, passes in sides))

    def house(self, dice: _Dice, shop: bool, x: float, y: float, cos: float, sin: float) -> None:
        """A plot and its house, if there is room; (cos, sin) follows the street, b leaves it."""
        scale = 2.7 if shop else 1.0
        long, wide = scale * dice.between(5.5, 8), scale * dice.between(4, 5.2)
        at, dx, dy = self.patch(x, y, 1.2 * long + 18)
        a, b, side = cos * dx + sin * dy, cos * dy - sin * dx, 1 if dice.chance(0.5) else -1
        labels, fine, coarse = self.labels[at], self.fine[at], self.coarse[at]
        free, turned = labels == GROUND, dice.chance(0.3)  # turned: the gable to the street
        depth = long if turned else wide
        if not free[(np.abs(a) < long + 1) & (np.abs(b) < depth + 1)].all():
            return
        if shop:
            yard = free & (np.abs(a) < long + 7) & (b > -depth - 17) & (b < depth + 6)
            self.paint(yard, 124 + 3 * fine + 8 * coarse, at, label=ROAD)
        else:
            plot = free & (np.abs(a) < long + 3.5) & (b > -10) & (b < depth + 15)
            self.paint(plot, dice.pick(_LAWNS) * (1 + 0.09 * fine + 0.1 * coarse), at)
            drive = (np.abs(a * side - long - 1.7) < 1.4) & (b > -12) & (b < 2)
            terrace = (np.abs(a) < 0.6 * long) & (np.abs(b - depth) < 3)
            self.paint(free & (drive | terrace), dice.pick(_PAVING) * (1 + 0.04 * fine), at)
            hedge = (np.abs(a * side + long + 3.2) < 0.9 + 0.5 * fine) & (np.abs(b - 6) < 14)
            if dice.chance(0.4):
                self.paint(free & hedge, dice.pick(_LEAVES) * (0.9 + 0.25 * fine), at, 1.5, TREE)
            pool = np.maximum(np.abs(a + 2 * side) - 3.2, np.abs(b - depth - 9) - 1.9)
            if dice.chance(0.1) and (labels[pool < 0.8] == GROUND).all():
                self.paint(pool < 0.8, 180, at)
                self.paint(pool < 0, _rgb(98, 168, 182) * (1 + 0.04 * fine), at, label=WATER)
        if turned:
            a, b, cos, sin = b, -a, -sin, cos
        flat = shop or dice.chance(0.06)
        walls, pitch = dice.between(3.2, 6), 0.0 if flat else dice.between(0.5, 0.85)
        hip, wing = dice.chance(0.4), dice.chance(0.4)
        roof = _roof(a, b, long, wide, pitch, hip)
        if wing:
            top = _roof(b - 0.6 * wide, side * a - long + 2.7, 0.8 * wide, 2.7, pitch, hip)
            roof = np.where(top[0] > roof[0], [top[0], side * top[2], top[1]], roof)
        rise, slope_a, slope_b = roof
        slope_x, slope_y = cos * slope_a - sin * slope_b, sin * slope_a + cos * slope_b
        lit = 1 - slope_x * TO_SUN[0] - slope_y * TO_SUN[1]
        lit = 0.36 + 0.64 * np.maximum(lit / np.sqrt(1 + slope_x**2 + slope_y**2), 0)
        course = np.abs(rise / 0.8 - np.floor(rise / 0.8) - 0.5)
        tiles = dice.pick(_FLAT_ROOFS if flat else _ROOFS) * lit
        tiles = tiles * (0.97 + 0.12 * course + 0.05 * fine + 0.06 * coarse)
        self.paint(rise >= 0, tiles, at, walls + rise, BUILDING)
        for _ in range(8 if shop else 1):  # a chimney, or machines on a flat roof
            p, q = dice.between(-0.7, 0.7) * long, dice.between(0, 0.7 if flat else 0.2) * wide
            box = (np.abs(a - p) < (1.1 if flat else 0.5)) & (np.abs(b - q) < 0.6)
            self.paint(box, _rgb(124, 98, 88) if not flat else 150, at, walls + wide * pitch + 0.8)
        panels = (np.abs(a) < 0.6 * long) & (np.abs(np.abs(b) - 0.5 * wide) < 0.3 * wide)
        if dice.chance(0.3):
            self.paint(panels & (lit > 1.05) & (rise > 0), _rgb(46, 54, 78) * lit, at)

    def tree(self, dice: _Dice, x: float, y: float) -> None:
        """A crown: a dome with lumps, brighter on the sun's side."""
        radius = 1.4 + 3.2 * dice.between(0, 1) * dice.between(0.3, 1)
        at, dx, dy = self.patch(x, y, 1.3 * radius)
        needles, fine = dice.chance(0.15), self.fine[at]
        inside = 1 - (dx * dx + dy * dy) / (radius * radius) + 0.45 * fine
        dome = radius * (1.1 + (1.5 if needles else 0.8) * np.sqrt(np.maximum(inside, 0)))
        light = 0.82 + (0.4 / radius) * (dx * TO_SUN[0] + dy * TO_SUN[1]) + 0.28 * fine
        leaves = dice.pick(_NEEDLES if needles else _LEAVES) * light
        self.paint((inside > 0) & (dome > self.height[at]), leaves, at, dome, TREE)

    def car(self, dice: _Dice, x: float, y: float, cos: float, sin: float) -> None:
        """A car, where there is road and no other car."""
        at, dx, dy = self.patch(x, y, 3)
        a, b, half = cos * dx + sin * dy, cos * dy - sin * dx, dice.between(1.9, 2.4)
        body = (np.abs(a) < half) & (np.abs(b) < 0.9) & (self.labels[at] == ROAD)
        if not self.height[at][body].any():
            colour, windows = dice.pick(_CARS), body & (np.abs(np.abs(a + 0.3) - 1.1) < 0.3)
            self.paint(body, colour, at, 1.4)
            self.paint(windows, colour * 0.35 + 22, at)

    def populate(self) -> None:
        """Try many places: the distance from the street decides what may stand there."""
        draws = uniforms(self.seed, 0, np.arange(int(self.extent**2 / 2)), "places", 3)
        column, row = (draws[:, :2].T * self.size).astype(int)
        last, edge, cell = self.size - 1, self.edge[row, column], self.cell[row, column]
        right = self.edge[row, (column + 1).clip(0, last)] - self.edge[row, (column - 1).clip(0)]
        down = self.edge[(row + 1).clip(0, last), column] - self.edge[(row - 1).clip(0), column]
        length = np.sqrt(right * right + down * down) + np.float32(1e-6)
        x, y = self.middles[column], self.middles[row]
        places = np.stack([x, y, down / length, -right / length], 1).tolist()
        kind, lined = self.kinds.ravel()[cell], self.chance[..., 7].ravel()[cell] < 0.35
        beside, draw = self.paved[row, column], draws[:, 2]
        density = _TREES[kind] * np.clip(1 + 1.3 * self.coarse[row, column], 0.2, 3)
        shops = (kind == _SHOPS) & (np.abs(edge - 30) < 2) & (draw < 0.3)
        homes = (kind == _HOMES) & (np.abs(edge - 12) < 1) & (draw < 0.3)
        parked = (np.abs(edge + 1) < 0.2) & (draw < 0.25)
        driving = (np.abs(edge + 2.6) < 0.3) & (draw < 0.03)
        rows = lined & (np.abs(edge - 2.6) < 0.3) & (draw < 0.25)
        objects = {"shop": beside & shops, "home": beside & homes}
        objects |= {"car": beside & (parked | driving), "tree": rows | (draw < 0.1 * density)}
        for purpose, mask in objects.items():
            found = np.flatnonzero(mask)
            for i, dice in zip(found, _dice(self.seed, purpose, found), strict=True):
                if purpose == "car":
                    self.car(dice, *places[i])
                elif purpose != "tree":
                    self.house(dice, purpose == "shop", *places[i])
                elif self.labels[row[i], column[i]] == GROUND:
                    self.tree(dice, *places[i][:2])

    def light(self) -> Array:
        """Cast the shadows, then blur as a lens does and add the noise of a sensor."""
        tall = (self.height * 100).astype(np.int16)
        horizon = np.zeros_like(tall)
        for k in range(2, int(float(self.height.max()) / self.resolution) + 2):
            right, down = round(k * TO_SUN[0]), round(k * TO_SUN[1])
            ray = tall[down:, right:] - np.int16(100 * k * self.resolution)
            hidden = horizon[: len(ray), : ray.shape[1]]
            np.maximum(hidden, ray, out=hidden)
        shade = np.clip((horizon - tall - np.int16(15)).astype(np.float32) / 50, 0, 1)
        soft: Array = 6 + np.float32(1.04) * self.colour * (1 - shade * (1 - _rgb(*SKY)))
        soft = np.pad(soft, ((0, 0), (1, 1), (1, 1)), "edge")
        soft = soft[:, :-2] + 2 * soft[:, 1:-1] + soft[:, 2:]
        soft = (soft[..., :-2] + 2 * soft[..., 1:-1] + soft[..., 2:]) / 16
        grain = uniforms(self.seed, 0, [0], "sensor", (soft.size + 3) // 4)[0] * 2**32
        grain = grain.astype("<u4").view(np.uint8)[: soft.size].reshape(soft.shape)
        grain = (grain & 15) + (grain >> 4)  # two dice: mean 15, standard deviation 6.5
        soft += np.float32(0.35) * grain - np.float32(0.35 * 15 - 0.5)
        return np.clip(soft, 0, 255).astype(np.uint8)


def _roof(a: Array, b: Array, long: float, wide: float, pitch: float, hip: bool) -> Array:
    """Height above the eaves (negative: outside) and its slopes along a, the ridge, and b."""
    along, across = long - np.abs(a) + 0 * b, wide - np.abs(b) + 0 * a
    end = (along < across) & hip
    rise = np.where((along > 0) & (across > 0), pitch * np.where(end, along, across), -99)
    slopes = np.where(end, -pitch * np.sign(a), 0), np.where(end, 0, -pitch * np.sign(b))
    return np.stack([rise, *slopes])


def town(size: int, seed: int, resolution: float = 0.3) -> tuple[Array, Array]:
    """Make one scene: a town between fields, with water, woods, and the same sun everywhere.

    ``size`` pixels (at least 64) wide and high, of ``resolution`` metres (0.1 to 1).

    Returns:
        Image ``(3, size, size)`` and labels ``(1, size, size)``, uint8: red, green, blue, and the
        number in ``CLASSES``. Car parks and cars are road; paths, drives and tracks are ground;
        pools are water; a tree covers what is below it.

    Raises:
        InputError: a value outside its range.
    """
    _check(size, seed, resolution)
    scene = _Town(seed, size, resolution)
    scene.plan()
    scene.fields()
    scene.roads(scene.water())
    scene.populate()
    return scene.light(), scene.labels[None]


def _check(size: int, seed: int, resolution: float) -> None:
    if size < 64 or seed < 0 or not 0.1 <= resolution <= 1:
        raise InputError(
            f"toytown with size {size}, seed {seed} and resolution {resolution}: expected at "
            "least 64 pixels, a seed of at least 0 and 0.1 to 1 m"
        )


def write(config: ToytownConfig) -> list[tuple[Path, Path]]:
    """Make scenes: pairs of GeoTIFFs ``town-NNN.tif`` and ``town-NNN-labels.tif``, returned.

    NNN is the seed, which also places the scene in UTM zone 33, beside the others.

    Raises:
        InputError: a file exists already or cannot be written, or a value is outside its range.
    """
    if config.scenes < 1:
        raise InputError(f"toytown with scenes {config.scenes}: expected at least 1")
    _check(config.size, config.seed, config.resolution)
    to = config.to
    seeds = range(config.seed, config.seed + config.scenes)
    pairs = [(to / f"town-{i:03d}.tif", to / f"town-{i:03d}-labels.tif") for i in seeds]
    targets = [path for pair in pairs for path in pair]
    with exclusive(to / "toytown", "toytown"):
        try:
            with placed(targets, replace=False, work=to / "toytown", refusal=REFUSAL) as folder:
                for seed, pair in zip(seeds, pairs, strict=True):
                    _write_scene(folder / FINISHED, pair, seed, config)
        except (OSError, RasterioError) as error:
            reason = error.__cause__ or error
            raise InputError(f"{to} cannot be written to: {reason}") from error
    return pairs


def _write_scene(folder: Path, pair: tuple[Path, Path], seed: int, config: ToytownConfig) -> None:
    """Image and labels of one seed, which also says where they lie."""
    size, resolution = config.size, config.resolution
    rgb, classes = town(size, seed, resolution)
    width = size * resolution
    west = 400_000 + seed % 50 * width
    north = 5_400_000 - seed // 50 % 50 * width
    grid = Affine(resolution, 0, west, 0, -resolution, north)
    image, labels = pair
    made = f"made by ganlab toytown from seed {seed} ({size} x {size} pixels of {resolution} m)"
    tags = {"GANLAB_GENERATED": "all", "GANLAB_SCENE": f"none: toytown, seed {seed}"}
    tags["TIFFTAG_IMAGEDESCRIPTION"] = f"Synthetic image: a town that does not exist, {made}"
    bands = ("red", "green", "blue")
    write_pixels(folder / image.name, rgb, CRS, grid, bands, tags=tags)
    tags["TIFFTAG_IMAGEDESCRIPTION"] = (
        f"Synthetic labels: classes of a town that does not exist, {made}"
    )
    write_pixels(folder / labels.name, classes, CRS, grid, ("class",), CLASSES, tags)
