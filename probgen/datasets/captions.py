"""Pictures with captions: clothes described by what they are and how they look, and digits by their names."""

from os import PathLike

import numpy as np

from probgen.datasets.dataset import Dataset
from probgen.datasets.real import digits_and_labels, fashion_labels, fashion_mnist
from probgen.errors import ParameterError
from probgen.events import Array, Record, Text, Words

__all__ = ["DIGITS", "FASHION", "TONES", "WEIGHTS", "digit_words", "fashion_caption_list", "fashion_captions"]

TONES = ("bright", "grey", "dark")
WEIGHTS = ("thin", "bold")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Of each class of Fashion-MNIST, by its label: captions without and with its attributes
FASHION = {
    "t-shirt": ("a {} t-shirt", "a {} sleeveless t-shirt"),
    "trousers": ("a pair of {} narrow trousers", "a pair of {} wide trousers"),
    "pullover": ("a {} pullover",),
    "dress": ("a {} narrow dress", "a {} wide dress"),
    "coat": ("a {} coat",),
    "sandal": ("a {} sandal", "a {} sandal with a heel"),
    "shirt": ("a {} short-sleeved shirt", "a {} long-sleeved shirt"),
    "sneaker": ("a {} sneaker", "a {} high sneaker"),
    "bag": ("a {} narrow bag", "a {} wide bag", "a {} narrow bag with a handle", "a {} wide bag with a handle"),
    "boot": ("a {} boot", "a {} boot with a heel"),
}
_SCREEN = np.array([[40, 150], [200, 100]])  # thresholds of ordered dithering
_INK = 40  # a pixel from here on belongs to the garment
_DARK = (128, 192)  # mean of the garment's pixels: below bright, from the second on dark
_WIDE = {"trousers": 12, "dress": 15, "bag": 26}  # columns of three garment pixels at least
_SHORT, _SLEEVES = 1.15, 1.25  # of shirts and t-shirts, how much wider the shoulders are than the hem
_HEEL = 3  # columns free of ink within the last three rows, between sole and heel
_HIGH = 15  # rows of a sneaker
_HANDLE = 0.45  # ink in the first four rows of a bag, as a share of its fullest row


def fashion_captions(folder: str | PathLike | None = None, levels: int = 2) -> Dataset:
    """70 000 pictures of clothes with captions, such as "a dark boot with a heel"; Fashion-MNIST's test rows are held.

    A caption is a deterministic function of the class and of simple measurements of the grey picture. There are 60 of
    them: bright, grey or dark, times one attribute or two where the class has any. Large values are dark, as they
    were photographed. ``questions`` asks about them.

    - bright, grey, dark: the mean of the garment's pixels, those of 40 and more; below 128, below 192, above.
    - narrow, wide: columns with three such pixels at least; wide from 12 (trousers), 15 (dress), 26 (bag).
    - sleeves: the greatest extent of rows 3-8 over the median extent of rows 17-21. From 1.15 a shirt is short-sleeved,
      else long-sleeved; below 1.25 a t-shirt is sleeveless.
    - with a heel: three columns or more are free between sole and heel in the last three rows (sandal, boot).
    - high: a sneaker of 15 rows or more.
    - with a handle: the first four rows of a bag have on average less than 45 % of the ink of its fullest row.

    Arguments:
        folder: Of the four idx files; None takes Debian's package dataset-fashion-mnist.
        levels: Of a pixel. 2 is ordered dithering on a screen of 2 x 2 thresholds (40, 150; 200, 100): nothing is
            drawn, and outlines and greys both survive (a net reads the tone off 94 % of the pictures, after a cut at
            128 off 78 %). More levels are equal shares of 0..255.

    Raises:
        DataError: a file that is missing.
        ParameterError: levels outside 2..256.
    """
    if isinstance(levels, bool) or not isinstance(levels, int) or not 2 <= levels <= 256:
        raise ParameterError(f"levels={levels!r}", "a whole number from 2 to 256")
    grey, labels = fashion_mnist(folder).x, fashion_labels(folder)
    captions = fashion_caption_list(grey, labels)
    if levels == 2:
        image = (grey >= np.tile(_SCREEN, (14, 14))).astype(np.uint8)
    else:
        image = (grey.astype(np.int64) * levels // 256).astype(np.uint8)
    known = [form.format(tone) for forms in FASHION.values() for form in forms for tone in TONES]
    event = Record(image=Array((28, 28), levels=levels), caption=Text(Words.learn(2 * known)))
    about = "Xiao, Rasul and Vollgraf (2017), MIT licence; captions measured off the pictures"
    held = np.arange(len(grey) * 6 // 7, len(grey))
    return Dataset("fashion_captions", {"image": image, "caption": captions}, event, about, held=held)


def fashion_caption_list(grey: np.ndarray, labels: np.ndarray) -> list[str]:
    """The caption of each picture, by its pixels (n, 28, 28), 0..255, and label (n,), 0..9."""
    ink = grey >= _INK
    tone = np.digitize((grey * ink).sum((1, 2)) / ink.sum((1, 2)).clip(1), _DARK)
    width = (ink.sum(1) >= 3).sum(1)
    wide = {name: width >= least for name, least in _WIDE.items()}
    shoulders = _shoulders(ink)
    heel = _free_columns(ink) >= _HEEL
    attributes = {
        "t-shirt": shoulders < _SLEEVES,
        "trousers": wide["trousers"],
        "dress": wide["dress"],
        "sandal": heel,
        "shirt": shoulders < _SHORT,
        "sneaker": ink.any(2).sum(1) >= _HIGH,
        "bag": wide["bag"] + 2 * (_crown(ink) < _HANDLE),
        "boot": heel,
    }
    names = list(FASHION)
    chosen = np.select([labels == names.index(name) for name in attributes], list(attributes.values()), 0)
    return [FASHION[names[k]][i].format(TONES[t]) for k, i, t in zip(labels, chosen, tone, strict=True)]


def _shoulders(ink: np.ndarray) -> np.ndarray:
    """Greatest extent of rows 3-8 over the median extent of rows 17-21, (n,)."""
    extent = np.where(ink.any(2), 28 - ink[:, :, ::-1].argmax(2) - ink.argmax(2), 0)
    return extent[:, 3:9].max(1) / np.median(extent[:, 17:22], 1).clip(1)


def _free_columns(ink: np.ndarray) -> np.ndarray:
    """Columns without ink between the first and the last inked one of a picture's last three inked rows, (n,)."""
    last = 27 - ink.max(2)[:, ::-1].argmax(1)
    rows = np.clip(last[:, None] + np.arange(-2, 1), 0, 27)
    foot: np.ndarray = ink[np.arange(len(ink))[:, None], rows].max(1)
    extent = np.where(foot.any(1), 28 - foot[:, ::-1].argmax(1) - foot.argmax(1), 0)
    return extent - foot.sum(1)


def _crown(ink: np.ndarray) -> np.ndarray:
    """Mean ink of the first four inked rows, as a share of the fullest row, (n,)."""
    rows = ink.sum(2)
    first = np.clip((rows > 0).argmax(1)[:, None] + np.arange(4), 0, 27)
    return np.take_along_axis(rows, first, 1).mean(1) / rows.max(1).clip(1)


def digit_words() -> Dataset:
    """1797 handwritten digits of 8 x 8 pixels and 17 levels with captions such as "a bold three"; needs scikit-learn.

    Bold are pictures whose pixels are 5 on average or more, the rest is thin.
    """
    images, labels = digits_and_labels()
    bold = images.mean((1, 2)) >= 5
    captions = [f"a {WEIGHTS[b]} {DIGITS[k]}" for b, k in zip(bold.astype(int), labels, strict=True)]
    event = Record(image=Array((8, 8), levels=17), caption=Text(Words.learn(captions)))
    about = "Alpaydin and Kaynak (1998), UCI; scikit-learn's copy, captions of label and ink"
    return Dataset("digit_words", {"image": images, "caption": captions}, event, about)
