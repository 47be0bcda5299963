"""Graphs without directions, by distances, after Kamada and Kawai (1989)."""

from collections.abc import Mapping, Sequence

import numpy as np

from probgen.layout.places import GAP, Edge, Layout, Point, within


def distances(nodes: Sequence[str], edges: Sequence[Edge], sizes: Mapping[str, Point]) -> Layout:
    """Distances on paper as along the edges, by majorisation of the stress (Gansner, Koren and North 2004)."""
    index = {name: i for i, name in enumerate(nodes)}
    pairs = [(index[a], index[b]) for a, b in within(nodes, edges)]
    box = np.array([sizes[name] for name in nodes])
    points = _apart(_majorise(_steps(len(nodes), pairs)), box)
    low, high = (points - box / 2).min(0), (points + box / 2).max(0)
    places = {name: (float(p[0]), float(p[1])) for name, p in zip(nodes, points - low, strict=True)}
    return Layout(places, {}, *(high - low).tolist())


def _steps(n: int, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """Number of edges between each two nodes, shape (n, n)."""
    joined = np.zeros((n, n), dtype=bool)
    for a, b in pairs:
        joined[a, b] = joined[b, a] = True
    far, front = np.where(np.eye(n, dtype=bool), 0.0, np.inf), np.eye(n, dtype=bool)
    for step in range(1, n):
        front = (front.astype(np.float32) @ joined.astype(np.float32) > 0) & np.isinf(far)
        if not front.any():
            break
        far[front] = step
    return far


def _majorise(far: np.ndarray, sweeps: int = 300) -> np.ndarray:
    """Points (n, 2) whose distances are near to those wanted, from the classical scaling of them."""
    n = len(far)
    centre = np.eye(n) - 1 / n
    values, vectors = np.linalg.eigh(-centre @ far**2 @ centre / 2)
    signs = np.sign(vectors[np.abs(vectors).argmax(0), np.arange(n)])
    points = (vectors * signs * np.sqrt(values.clip(0)))[:, ::-1][:, :2]
    points = np.pad(points, ((0, 0), (0, 2 - points.shape[1])))
    angle = 2.4 * np.arange(n)
    points = points + 0.05 * np.c_[np.cos(angle), np.sin(angle)]
    weight = 1 / (far + np.eye(n)) ** 2 - np.eye(n)
    laplacian = np.diag(weight.sum(1)) - weight
    inverse = np.linalg.pinv(laplacian)
    for _ in range(sweeps if n > 1 else 0):
        gaps = np.sqrt(((points[:, None] - points[None]) ** 2).sum(2)) + np.eye(n)
        ratio = weight * far / gaps.clip(1e-9)
        points = inverse @ (np.diag(ratio.sum(1)) - ratio) @ points
    return points


def _apart(points: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Points drawn out until no two boxes touch."""
    free = (box[:, None] + box[None]) / 2 + GAP
    apart = np.abs(points[:, None] - points[None]).clip(1e-6)
    needed = (free / apart).min(2)
    np.fill_diagonal(needed, 0.0)
    return points * max(0.8, float(min(needed.max(initial=0.0), 8.0)))
