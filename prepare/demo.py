"""Draw the demo data set: photo-like scenes with labels, and with tags like those that people give.

    python prepare/demo.py OUT_DIR [--images 1500] [--seed 0]

writes `OUT_DIR/images/*.jpg` (256×256) and `OUT_DIR/photos.csv` for `prepare/photos.py`. Every image has a random
stream of its own, so image 7 is the same however many there are.
"""
import argparse
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from storage.files import write_json, write_text
from util import UserError, number, progress, run_program, stream

SIDE = 256  # pixels
ROWS = np.arange(SIDE, dtype=np.float32)[:, None]  # (SIDE, 1)
COLUMNS = np.arange(SIDE, dtype=np.float32)[None]  # (1, SIDE)

QUERY_PERIOD = 15  # two of this many images are queries: 200 of 1,500
QUERY_PLACES = (7, 14)

cv2.setNumThreads(1)  # pictures this small gain nothing from threads


# ---------------------------------------------------------------- drawing

@dataclass
class Scene:
    """A picture that is being painted. Colours are RGB, 0 to 1, of shape (3, 1, 1); pictures (3, SIDE, SIDE)."""
    rng: np.random.Generator
    shown: tuple  # the concepts, back to front
    light: np.ndarray  # a colour that is multiplied by the colour of everything that gives no light itself
    canvas: np.ndarray = field(default_factory=lambda: np.zeros((3, SIDE, SIDE), np.float32))

    def paint(self, colour, mask=1.0, lit=True):
        """Cover the canvas with `colour` where `mask`, which broadcasts to (SIDE, SIDE), is 1."""
        change = colour * (self.light if lit else 1) - self.canvas
        change *= mask
        self.canvas += change

    def shade(self, dark, bright, spread=0.02):
        """A random colour between two, whose channels are 0 to 255 as in a colour picker."""
        mixed = np.array(dark) + self.rng.random() * np.subtract(bright, dark)
        return rgb(*np.clip(mixed / 255 + self.rng.normal(0, spread, 3), 0, 1))

    def noise(self, cells, stretch=1.0, octaves=5, rows=SIDE):
        """Fractal noise, 0 to 1: `cells` blobs across, each `stretch` times wider than high, and finer."""
        total = np.zeros((rows, SIDE), np.float32)
        for octave in range(octaves):
            grid = np.minimum([rows, SIDE], np.multiply([cells * stretch, cells], 2**octave)).astype(int)
            values = self.rng.random(np.maximum(grid, 1), np.float32)
            total += cv2.resize(values, (SIDE, rows), interpolation=cv2.INTER_CUBIC) / 2**octave
        return cv2.normalize(total, None, 0, 1, cv2.NORM_MINMAX)

    def outline(self, height, cells, octaves=5):
        """A rough line across the picture, such as a ridge: (1, SIDE), 0 to `height` rows."""
        return height * self.noise(cells, 1, octaves, rows=1)

    def dots(self, share, size):
        """Mask of soft dots of radius `size` on a `share` of the pixels."""
        dots = (self.rng.random((SIDE, SIDE), np.float32) < share).astype(np.float32)
        return np.minimum(cv2.GaussianBlur(dots, (0, 0), size) * 8 * size**2, 1)


def rgb(red, green, blue):
    """A colour as the painters need it, float32 (3, 1, 1)."""
    return np.array([red, green, blue], np.float32)[:, None, None]


def ramp(colours, position):
    """A picture that goes through `colours` as `position`, (rows, columns), goes from 0 to 1."""
    places = np.linspace(0, 1, len(colours))
    channels = np.reshape(colours, (-1, 3)).T
    return np.stack([np.interp(position, places, channel) for channel in channels]).astype(np.float32)


def below(edge):
    """Mask of everything below row `edge`, a number or one for each column, with a soft border."""
    return np.clip(ROWS - edge + 0.5, 0, 1)


def inside(distance, radius):
    """Mask of everything nearer than `radius`, with a soft border."""
    return np.clip(radius - distance + 0.5, 0, 1)


def step(values, low, high):
    """0 below `low`, 1 above `high`, smooth between."""
    t = np.clip((values - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def relief(heights, strength):
    """How light from the upper left falls on a surface: about 1, more on slopes that face it."""
    return 1 - strength * (cv2.Sobel(heights, -1, 1, 0) + cv2.Sobel(heights, -1, 0, 1))


def laid_flat(texture, top):
    """`texture` as ground that runs from the viewer to a horizon at row `top`, where it fades to its mean."""
    distance = (SIDE - top) / np.maximum(ROWS - top, 8)  # (SIDE, 1), 1 at the lower border
    across = SIDE / 2 + (COLUMNS - SIDE / 2) * distance
    along = np.broadcast_to(SIDE - 100 * (distance - 1), across.shape)
    flat = cv2.remap(texture, across.astype(np.float32), along.astype(np.float32), cv2.INTER_LINEAR,
                     borderMode=cv2.BORDER_REFLECT)
    return texture.mean() + (flat - texture.mean()) / np.maximum(distance / 2, 1)


# ---------------------------------------------------------------- painters: backdrops, down to row `top`

def paint_sky(scene, top):
    """Blue, paler towards the horizon, with clouds."""
    rng = scene.rng
    zenith, haze = scene.shade((25, 80, 170), (90, 150, 220)), scene.shade((150, 190, 225), (215, 225, 235))
    scene.paint(ramp([zenith, haze], ROWS / top))
    clouds = step(scene.noise(rng.integers(2, 5), rng.uniform(1, 3)), rng.uniform(0.35, 0.7), 0.9)
    scene.paint(scene.shade((225, 225, 230), (255, 255, 255)) * (1 - 0.25 * clouds * rng.random()),
                clouds * rng.uniform(0.6, 1))


def paint_sunset(scene, top):
    """Violet to gold, streaks of cloud, a low sun."""
    rng = scene.rng
    colours = [scene.shade((40, 30, 80), (110, 80, 130)), scene.shade((150, 60, 80), (210, 110, 110)),
               scene.shade((230, 100, 30), (250, 150, 60)), scene.shade((250, 180, 60), (255, 220, 130))]
    scene.paint(ramp(colours, ROWS / top), lit=False)
    streaks = step(scene.noise(2, rng.uniform(3, 8)), 0.5, 0.8)
    scene.paint(scene.shade((90, 40, 60), (255, 120, 80)), streaks * rng.uniform(0.3, 0.9), lit=False)
    sun_row, sun_column = min(top, SIDE) - rng.uniform(-5, 60), rng.uniform(30, SIDE - 30)
    distance = np.hypot(ROWS - sun_row, COLUMNS - sun_column)
    scene.paint(rgb(1, 0.75, 0.35), 0.8 * np.exp(-distance / rng.uniform(20, 60)), lit=False)
    scene.paint(rgb(1, 0.95, 0.75), 1 - step(distance, 0, rng.uniform(8, 22)), lit=False)


def paint_night(scene, top):
    """Nearly black, with stars and sometimes the moon."""
    rng = scene.rng
    zenith, glow = scene.shade((2, 3, 12), (10, 14, 40), 0.01), scene.shade((10, 15, 40), (40, 45, 80), 0.02)
    scene.paint(ramp([zenith, glow], ROWS / top), lit=False)
    scene.paint(rgb(0.3, 0.3, 0.4), 0.5 * rng.random() * step(scene.noise(3, 2), 0.5, 1), lit=False)
    scene.paint(rgb(0.95, 0.95, 1), scene.dots(rng.uniform(0, 0.005), 0.5) * rng.uniform(0.4, 1), lit=False)
    if rng.random() < 0.4:
        moon = np.hypot(ROWS - rng.uniform(20, 90), COLUMNS - rng.uniform(20, SIDE - 20))
        scene.paint(rgb(0.6, 0.65, 0.8), 0.5 * np.exp(-moon / 25), lit=False)
        scene.paint(rgb(0.97, 0.96, 0.88), inside(moon, rng.uniform(6, 16)), lit=False)


# ---------------------------------------------------------------- painters: land and water, below row `top`

def paint_sea(scene, top):
    """Waves with some foam, mirroring what is behind them."""
    rng = scene.rng
    far, near = scene.shade((20, 80, 120), (70, 150, 170)), scene.shade((5, 40, 80), (20, 110, 130))
    waves = laid_flat(scene.noise(rng.integers(3, 9), rng.uniform(2, 5)), top)
    water = ramp([far, near], (ROWS - top) / (SIDE - top)) * (0.55 + 0.9 * waves) * scene.light
    if top > 0:  # the water mirrors what is above it, broken up by the waves
        mirrored = np.clip(2 * top - ROWS + 14 * (waves - 0.5), 0, SIDE - 1)
        mirror = cv2.remap(cv2.merge(scene.canvas), COLUMNS + 40 * (waves - 0.5), mirrored,
                           cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        mirror = cv2.GaussianBlur(mirror, (0, 0), sigmaX=1, sigmaY=5).transpose(2, 0, 1)
        water += rng.uniform(0.35, 0.6) * (mirror - water)
    scene.paint(water, below(top), lit=False)
    foam = step(waves, rng.uniform(0.6, 0.8), 0.95) * step(scene.noise(24), 0.3, 0.7)
    scene.paint(rgb(0.9, 0.95, 0.95), 0.9 * foam * below(top))


def paint_beach(scene, top):
    """Surf along a slanting waterline, wet sand, dry sand, a parasol or towel."""
    rng = scene.rng
    waterline = top + rng.uniform(-0.15, 0.15) * (COLUMNS - SIDE / 2) + scene.outline(14, 3, 3)
    ripples = laid_flat(scene.noise(10, 2), top - 40)
    sand = scene.shade((200, 170, 125), (240, 220, 180)) * (0.8 + 0.4 * ripples)
    scene.paint(sand * (0.94 + 0.12 * rng.random((SIDE, SIDE), np.float32)), below(waterline))
    wet = np.exp(-np.maximum(ROWS - waterline, 0) / rng.uniform(8, 20))
    scene.paint(sand * rgb(0.55, 0.55, 0.6), 0.8 * wet * below(waterline))
    surf = np.exp(-((ROWS - waterline + 2) / rng.uniform(2, 7)) ** 2) * step(scene.noise(10, 2), 0.2, 0.5)
    scene.paint(rgb(1, 1, 1), surf)
    for _ in range(rng.poisson(1.5)):  # parasols and towels
        centre = rng.uniform(10, SIDE - 10), rng.uniform(min(top + 50, SIDE - 20), SIDE)
        spot = np.hypot((COLUMNS - centre[0]) / rng.uniform(1, 2), ROWS - centre[1])
        scene.paint(rgb(*rng.uniform(0.2, 1, 3)), inside(spot, rng.uniform(3, 8)))


def paint_desert(scene, top):
    """Dunes, one before the other, each with a lit and a shaded side."""
    rng = scene.rng
    colour = scene.shade((190, 100, 45), (225, 155, 85))
    edge = top - scene.outline(rng.uniform(5, 30), 2, 2)
    while edge.min() < SIDE:
        crest = rng.uniform(0, SIDE) + scene.outline(120, 2, 3).T + rng.uniform(-1, 1) * (ROWS - top)
        side = step(float(rng.choice([-1, 1])) * (COLUMNS - crest), -3, rng.uniform(3, 80))
        ripples = 0.9 + 0.2 * laid_flat(scene.noise(12, 5, 4), top - 20)
        bright = (0.6 + 0.45 * side) * ripples
        scene.paint(colour * bright * (1 + rng.normal(0, 0.04)), below(edge))
        edge = edge + rng.uniform(20, 80) + scene.outline(40, 2, 2) - 15


def paint_mountain(scene, top):
    """Two or three ranges of rock that rise above `top`, with snow on them in a scene of snow."""
    rng = scene.rng
    rock, haze = scene.shade((70, 65, 65), (135, 115, 100)), scene.shade((140, 160, 190), (180, 190, 205))
    ranges = rng.integers(2, 4)
    peak = rng.uniform(0.5, 0.85) * max(top, 120)
    for depth in np.linspace(1, 0, ranges).tolist():  # far ranges are hazy, near ones lower
        edge = top - peak * (0.3 + 0.7 * depth) + scene.outline(peak * 0.9, rng.integers(2, 5), 6)
        heights = scene.noise(4, 1, 7)
        stone = rock * np.clip(relief(heights, 2.5), 0.25, 1.8)
        if "snow" in scene.shown:  # lies high up and where it is not too steep
            high = step(edge + peak * rng.uniform(0.3, 0.8) - ROWS + 60 * (heights - 0.5), -10, 10)
            stone += 0.9 * high * (np.clip(relief(heights, 1), 0.6, 1.1) - stone)
        scene.paint(stone + 0.6 * depth * (haze - stone), below(edge))


def paint_snow(scene, top):
    """Smooth drifts with blue shadows; sometimes it is snowing."""
    rng = scene.rng
    drifts = laid_flat(scene.noise(3, 1.5, 4), top - 30)
    bright = np.clip(relief(cv2.GaussianBlur(drifts, (0, 0), 2), 1.5), 0.5, 1.2)
    shadow = scene.shade((150, 170, 205), (190, 200, 225))
    white = scene.shade((235, 240, 245), (255, 255, 255), 0.01)
    scene.paint(ramp([shadow, white], step(bright + 0.3 * (drifts - 0.5), 0.6, 1.1)),
                below(top + scene.outline(20, 2, 3)))
    for size in (0.6, 1.2) if rng.random() < 0.4 else ():  # it is snowing
        scene.paint(rgb(1, 1, 1), scene.dots(0.006, size))


def paint_forest(scene, top):
    """A wall of trees that rises above `top`, or the inside of a wood if there is nothing behind it."""
    rng = scene.rng
    green = scene.shade((25, 55, 20), (70, 105, 40))
    if rng.random() < 0.15:  # autumn
        green = scene.shade((110, 60, 15), (160, 100, 30))
    firs = rng.random() < 0.5
    for edge in (top - 30, top, top + 25) if top > 0 else (top,):
        leaves = scene.noise(20, 1, 4)
        crowns = below(edge + (fir_tops(rng) if firs else scene.outline(30, 10, 4)))
        depth = step(scene.noise(8, 1, 3), 0.1, 0.9)
        scene.paint(green * (0.25 + 1.3 * leaves * depth), crowns)
        if "snow" in scene.shown:
            scene.paint(rgb(0.9, 0.93, 0.97), 0.9 * step(leaves, 0.5, 0.75) * crowns)
    if top > 0:
        return  # seen from outside: no trunks
    trunk = scene.shade((45, 35, 28), (110, 90, 70))
    bark = 0.7 + 0.6 * scene.noise(30, 0.3, 3)
    for column in rng.uniform(0, SIDE, rng.integers(4, 14)):
        width = rng.uniform(2, 11)
        line = COLUMNS - column - rng.normal(0, 0.06) * ROWS - scene.outline(4, 3).T
        bright = np.clip(1.1 - 0.8 * (line / width + 0.4) ** 2, 0.2, 1) * bark
        scene.paint(trunk * bright, inside(np.abs(line), width))
    light_spots = step(scene.noise(12, 1, 3), 0.65, 0.9)
    scene.paint(rgb(0.85, 0.95, 0.6), 0.6 * rng.random() * light_spots)


def fir_tops(rng):
    """The upper outline of a row of pointed trees, (1, SIDE), 0 to about 50 rows."""
    tips = rng.uniform(-SIDE * 0.1, SIDE * 1.1, (rng.integers(14, 30), 1))
    slopes = rng.uniform(2, 4, tips.shape)
    outlines = rng.uniform(0, 30, tips.shape) + slopes * np.abs(COLUMNS - tips)  # (trees, SIDE)
    return np.minimum(outlines.min(0, keepdims=True), 50)


def paint_field(scene, top):
    """Grass, sometimes in furrows."""
    rng = scene.rng
    far, near = scene.shade((130, 170, 60), (190, 195, 90)), scene.shade((70, 130, 30), (120, 165, 50))
    grass = laid_flat(scene.noise(12, 0.6, 5), top)
    blades = scene.noise(64, 0.12, 2)  # upright, seen from near
    bright = 0.5 + 0.6 * grass + 0.4 * blades * step(ROWS, top, SIDE)
    stripes = np.sin(np.tile(COLUMNS / rng.uniform(3, 8), (SIDE, 1)))
    bright += max(rng.uniform(-0.3, 0.2), 0) * laid_flat(stripes, top)  # furrows
    scene.paint(ramp([far, near], (ROWS - top) / (SIDE - top)) * bright, below(top + scene.outline(12, 2, 3)))


# RGB, two ends of a range each: concrete, brick, glass
WALLS = [((105, 100, 95), (190, 185, 175)), ((120, 75, 60), (165, 110, 85)),
         ((85, 105, 125), (140, 165, 185))]


def paint_city(scene, top):
    """Rows of houses that rise above `top`, and a street; at night the windows shine."""
    rng = scene.rng
    night = "night" in scene.shown
    for depth in (0.6, 0.3, 0):  # rows of houses; the far ones are paler
        column = -rng.uniform(0, 15)  # less than the width of any house
        while column < SIDE:
            width, roof = rng.integers(16, 48), max(top, 0) + 60 - depth * 120 - rng.exponential(30)
            paint_house(scene, int(column), width, int(np.clip(roof, -20, SIDE - 20)), depth, night)
            column += width + rng.choice([0, 0, 3])
    if top > 0:
        scene.paint(scene.shade((50, 50, 55), (110, 105, 100)), below(max(top + 90, 220)) * 0.9)


def paint_house(scene, left, width, roof, depth, night):
    """One facade with a grid of windows, painted directly into the canvas."""
    rng = scene.rng
    part = scene.canvas[:, max(roof, 0):, max(left, 0):left + width]
    wall = scene.shade(*rng.choice(WALLS))
    wall = (wall + depth * (0.75 - wall)) * scene.light * rng.uniform(0.75, 1.1)
    rows, columns = np.arange(part.shape[1])[:, None], np.arange(part.shape[2])[None]
    pitch_y, pitch_x = rng.integers(5, 11), rng.integers(4, 9)
    glass = (rows % pitch_y >= 2) & (columns % pitch_x >= 2)  # (rows, columns)
    tones = rng.random((SIDE // 5 + 1, 48 // 4), np.float32)  # one number for each window
    tone = tones[rows // pitch_y, columns // pitch_x]  # (rows, columns)
    if night:
        lamp = scene.shade((255, 190, 90), (255, 240, 190))
        pane = np.where(tone < rng.uniform(0.2, 0.6), lamp * (0.5 + tone), wall * 0.5)
    else:
        pane = wall * (0.35 + 0.5 * tone)
    part[:] = np.where(glass, pane, wall)


# RGB, two ends of a range each: pink, red, violet, yellow, white
PETALS = [((215, 30, 90), (255, 150, 190)), ((200, 20, 20), (240, 60, 50)), ((130, 60, 180), (190, 130, 230)),
          ((250, 190, 0), (255, 225, 60)), ((240, 235, 235), (255, 255, 255))]


def paint_flower(scene, top):
    """One to four flowers close up; in a field, many small ones of one kind."""
    rng = scene.rng
    close_up = scene.shown == ("flower",)
    if close_up:  # out of focus behind it: leaves
        leaves = ramp([scene.shade((15, 40, 15), (40, 70, 30)), scene.shade((70, 120, 40), (140, 170, 90))],
                      scene.noise(3, 1, 3))
        scene.paint(leaves)
    colour = scene.shade(*rng.choice(PETALS))
    petals, sharpness = rng.integers(4, 14), rng.uniform(0.3, 1)
    count = rng.integers(1, 5) if close_up else rng.integers(15, 40)
    low = max(top - 25, 0)
    for depth in np.sort(rng.random(count)).tolist():  # the near ones are large, low and painted last
        if close_up:
            row, column, size = *rng.uniform(50, SIDE - 50, 2), rng.uniform(40, 105) / count**0.3
        else:
            row, column, size = low + (SIDE - low) * depth, rng.uniform(0, SIDE), 5 + 22 * depth
        paint_blossom(scene, row, column, size, colour, petals, sharpness)


def paint_blossom(scene, row, column, size, colour, petals, sharpness):
    """One flower: its outline is a wave around a circle, seen a little from the side."""
    rng = scene.rng
    part = tuple(slice(max(int(middle - size), 0), int(middle + size) + 2) for middle in (row, column))
    y, x = ROWS[part[0]] - row, COLUMNS[:, part[1]] - column  # all that follows is as small as the flower
    squash, turn = rng.uniform(0.6, 1), rng.uniform(0, np.pi)
    across = math.cos(turn) * x + math.sin(turn) * y
    along = (math.cos(turn) * y - math.sin(turn) * x) / squash
    radius, angle = np.hypot(across, along) / size, np.arctan2(along, across)
    wave = np.abs(np.cos(angle * (petals / 2))) ** sharpness
    streaks = 0.08 * np.sin(angle * (petals * 7) + 3 * radius)
    bright = 0.55 + 0.3 * radius + 0.3 * wave * radius + streaks
    heart = scene.shade((120, 80, 10), (250, 210, 60)) * rng.uniform(0.6, 1.4, radius.shape)
    canvas = scene.canvas[:, *part]
    for paint, reach in ((colour * bright, 0.55 + 0.45 * wave), (heart, rng.uniform(0.15, 0.3))):
        canvas += inside(radius * size, reach * size) * (paint * scene.light - canvas)


# ---------------------------------------------------------------- concepts and scenes

# The first tag of a concept is its most frequent one.
CONCEPTS = {
    "sky": (paint_sky, "sky clouds blue skies cloud bluesky"),
    "sunset": (paint_sunset, "sunset dusk sunsets orange sundown evening"),
    "night": (paint_night, "night dark nightshot moon stars nighttime"),
    "sea": (paint_sea, "sea ocean water waves wave seascape"),
    "beach": (paint_beach, "beach sand coast shore beaches sandy"),
    "desert": (paint_desert, "desert dunes dune sahara arid"),
    "mountain": (paint_mountain, "mountain mountains hills peak rocks alps"),
    "snow": (paint_snow, "snow winter cold ice snowy"),
    "forest": (paint_forest, "forest trees tree woods woodland"),
    "field": (paint_field, "field grass green meadow fields"),
    "city": (paint_city, "city urban buildings skyline architecture building"),
    "flower": (paint_flower, "flower flowers bloom blossom petals macro"),
}
BACKDROPS = ("sky", "sunset", "night")
LIGHTS = {"sunset": (0.55, 0.38, 0.32), "night": (0.25, 0.28, 0.38)}  # RGB; 1 by day

# How often each combination is drawn, with its concepts from back to front. Two random images share a concept in about
# 26 of 100 cases, which is the MAP of a random ranking.
SCENES = {
    "sky": 4, "sunset": 4, "night": 4,
    "sea": 4, "desert": 5, "forest": 8, "field": 3, "city": 4, "flower": 12,
    "sky sea": 4, "sky desert": 5, "sky field": 4, "sky city": 4, "sky mountain": 4, "sky forest": 2,
    "sky snow": 2,
    "sunset sea": 5, "sunset city": 3, "sunset mountain": 3, "sunset desert": 2, "sunset field": 2,
    "night city": 8, "night mountain": 3, "night sea": 3, "night snow": 2,
    "sea beach": 5, "mountain snow": 3, "forest snow": 6, "mountain sea": 2, "forest field": 3,
    "field flower": 6,
    "sky sea beach": 5, "sky mountain snow": 5, "sky mountain forest": 2, "sky field flower": 3,
    "sunset sea beach": 2,
}


def draw_scene(rng, shown):
    """A photo, uint8 (SIDE, SIDE, 3), BGR, of the concepts `shown`.

    A backdrop ends at the horizon, where the land begins; a second kind of land begins nearer to the viewer.
    Without a backdrop the horizon is above the picture, and the land fills it.
    """
    light = next((LIGHTS[name] for name in shown if name in LIGHTS), (1, 1, 1))
    scene = Scene(rng, shown, rgb(*light))
    open_air = shown[0] in BACKDROPS
    if open_air and len(shown) == 1:
        tops = [rng.uniform(SIDE, 1.4 * SIDE)]
    else:
        horizon = rng.uniform(80, 160) if open_air else rng.uniform(-120, -40)
        nearer = max(horizon, 0) + (SIDE - max(horizon, 0)) * rng.uniform(0.35, 0.6)
        tops = [horizon] * open_air + [horizon, nearer]
    for name, top in zip(shown, tops, strict=False):
        painter, _ = CONCEPTS[name]
        painter(scene, top)
    return take_photo(rng, scene.canvas)


def take_photo(rng, canvas):
    """A scene as a camera sees it: slightly rotated and blurred, with exposure, colour cast, vignetting and noise."""
    turn = cv2.getRotationMatrix2D((SIDE / 2, SIDE / 2), rng.normal(0, 1.5), rng.uniform(1.05, 1.2))
    blur = rng.uniform(0.4, 1.3)
    turned = [cv2.warpAffine(plane, turn, (SIDE, SIDE), borderMode=cv2.BORDER_REFLECT) for plane in canvas]
    photo = np.stack([cv2.GaussianBlur(plane, (0, 0), blur) for plane in turned])  # (3, SIDE, SIDE)
    exposure = rng.lognormal(-0.03, 0.13) * rgb(*rng.normal(1, 0.03, 3))
    photo = np.clip(photo * exposure, 0, 1) ** rng.uniform(0.85, 1.2)
    from_centre = np.hypot(ROWS - SIDE / 2, COLUMNS - SIDE / 2) / SIDE
    photo *= 1 - rng.uniform(0, 0.7) * from_centre**2
    grain = 0.4 * rng.standard_normal(photo.shape, np.float32)  # in colour, but chiefly in brightness
    grain += rng.standard_normal((SIDE, SIDE), np.float32)
    photo += rng.uniform(0.003, 0.03) * grain
    return cv2.merge((np.clip(photo[::-1], 0, 1) * 255).astype(np.uint8))


# ---------------------------------------------------------------- tags

NOISE_TAGS = ("canon nikon explore 2007 abigfave photo travel nature landscape geotagged hdr 2008 dslr light "
              "interestingness anawesomeshot eos 50mm trip summer d80 photography color flickr me friends")
FORGOTTEN = 0.12  # chance that a visible concept has no tag at all
WRONG = 0.12  # chance of a tag for a concept that is not there


def by_rank(rng, words, count):
    """`count` different words of `words`, the first being the likeliest, by Zipf's law of word frequencies."""
    words = words.split()
    chances = 1 / np.arange(1, len(words) + 1)
    return rng.choice(words, min(count, len(words)), replace=False, p=chances / chances.sum()).tolist()


def write_tags(rng, shown):
    """The tags that a person gives to a photo of the concepts `shown`: list of str, each once, never empty."""
    tags = by_rank(rng, NOISE_TAGS, 1 + rng.poisson(1.5))
    for name in shown:
        if rng.random() >= FORGOTTEN:
            tags += by_rank(rng, CONCEPTS[name][1], 1 + rng.binomial(3, 0.4))
    if rng.random() < WRONG:
        tags += by_rank(rng, CONCEPTS[rng.choice(list(CONCEPTS))][1], 1)
    return rng.permutation(list(dict.fromkeys(tags))).tolist()


# ---------------------------------------------------------------- the data set

def make_photo(seed, index):
    """Image `index`: the picture, its tags and its labels."""
    rng = stream(seed, "demo", index)
    weights = np.array(list(SCENES.values()))
    shown = tuple(rng.choice(list(SCENES), p=weights / weights.sum()).split())
    return draw_scene(rng, shown), write_tags(rng, shown), sorted(shown)


def make_demo(folder, images, seed):
    """Write the data set into `folder`, which is new, empty, or was made before with the same settings."""
    claim(folder, {"made_by": "prepare/demo.py", "images": images, "seed": seed})
    table = folder / "photos.csv"
    table.unlink(missing_ok=True)  # so that the images of an existing table are always complete
    (folder / "images").mkdir(exist_ok=True)
    rows = ["image,tags,labels,split"]
    for index in progress(range(images), desc="drawing", unit="image"):
        photo, tags, labels = make_photo(seed, index)
        name = f"{index:05d}.jpg"
        _, data = cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, 90])
        (folder / "images" / name).write_bytes(data)
        split = "query" if index % QUERY_PERIOD in QUERY_PLACES else "database"
        rows.append(f"{name},{' '.join(tags)},{' '.join(labels)},{split}")
    write_text(table, "\n".join(rows) + "\n")


def claim(folder, settings):
    """Make `folder` and save the settings in it. Raises UserError if it holds anything else."""
    note = folder / "settings.json"
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: expected a folder, found a file")
    if folder.is_dir() and any(folder.iterdir()):
        try:
            found = json.loads(note.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            found = None
        if found != settings:
            wanted = f"a demo made with --images {settings['images']} --seed {settings['seed']}"
            raise UserError(f"{folder}: expected an empty folder or {wanted}, found something else; "
                            f"choose another folder")
    write_json(note, settings)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path, metavar="OUT_DIR", help="folder for images/ and photos.csv")
    parser.add_argument("--images", type=number(int, QUERY_PERIOD, 100_000), default=1500,
                        help="number of images; two in 15 are queries (default 1500)")
    parser.add_argument("--seed", type=number(int, 0, 2**31 - 1), default=0,
                        help="seed of every random choice (default 0)")
    options = parser.parse_args()
    make_demo(options.folder, options.images, options.seed)
    print(f"{options.folder / 'photos.csv'}: {options.images} images")


if __name__ == "__main__":
    run_program(main)
