"""Image segmentation and compression: a photograph in K = 2, 3 and 10 colours, chosen by k-means.

    python experiments/segmentation.py [--seed S] [--out DIR] [--quick] [--no-plot]

scikit-learn's photograph of a dahlia, 240 × 180 pixels, each a point of RGB space in [0, 1]³ (float32). K-means from
k-means++ starts; the best of several by J. Sent as a table of K colours and an index a pixel, the picture takes

    24 K + N ⌈log₂ K⌉ bits,  N = 43,200,   against 24 N = 1,036,800 as it is

which is the slides' 43,248, 86,472 and 173,040 bits, or 4.2, 8.3 and 16.7 %. That is a code of fixed length for every
pixel on its own. Neighbours are alike, and so an indexed PNG takes less; its size is measured, the file decoded, and
the pixels compared.

Writes DIR/segmentation.json, .npz, .pdf and .png. Exits 0 when every claim holds, 1 when one fails, 2 for bad
arguments.
"""

import io
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageOps
from sklearn.cluster import KMeans
from sklearn.datasets import load_sample_image

import jaxem
from jaxem.families import gaussian

from _command import Config, Result, command, leave
from _results import Claim

SIZE = (240, 180)  # width and height: the slides'
COLOURS = (2, 3, 10)
SLIDES_BITS = {2: 43_248, 3: 86_472, 10: 173_040}
SLIDES_PERCENT = {2: 4.2, 3: 8.3, 10: 16.7}
RAW_BITS = 1_036_800
SAME = 1e-3  # of J: float32 distances that tie to rounding may send a pixel, and then a few more, either way


def photograph() -> np.ndarray:
    """(180, 240, 3) bytes: cropped to 4:3 about the middle, then reduced."""
    original = Image.fromarray(load_sample_image("flower.jpg"))
    return np.asarray(ImageOps.fit(original, SIZE, Image.Resampling.LANCZOS))


@partial(jax.jit, static_argnames="num_colours")
def restarts(keys: jax.Array, x: jax.Array, num_colours: int) -> tuple[jax.Array, jaxem.Fit]:
    """A k-means++ start for every key, and k-means from it, one after another: each takes its own number of steps."""

    def fit(key: jax.Array) -> tuple[jax.Array, jaxem.Fit]:
        start = jaxem.inits.kmeans_plus_plus(gaussian.isotropic, key, x, num_colours)["mu"]
        return start, jaxem.kmeans(x, start)

    return jax.lax.map(fit, keys)


def bits(num_pixels: int, num_colours: int) -> int:
    """24K for the table of colours, ⌈log₂ K⌉ for each pixel's index into it."""
    return 24 * num_colours + num_pixels * int(np.ceil(np.log2(num_colours)))


def indexed_png(labels: np.ndarray, palette: np.ndarray) -> bytes:
    """The same content as a PNG file: a palette of K colours, 1, 2 or 4 bits an index, row by row, deflated."""
    picture = Image.frombytes("P", labels.shape[::-1], labels.astype(np.uint8).tobytes())
    picture.putpalette(palette.astype(np.uint8).tobytes())
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True, bits=int(np.ceil(np.log2(len(palette)))))
    return file.getvalue()


def true_colour_png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return file.getvalue()


def run(config: Config) -> Result:
    pixels = photograph()
    x = jnp.asarray(pixels.reshape(-1, 3) / 255, jnp.float32)
    num_starts = 2 if config.quick else 10
    rows, arrays = [], {"original": pixels}
    for key, K in zip(jax.random.split(jax.random.key(config.seed), len(COLOURS)), COLOURS, strict=True):
        starts, fits = restarts(jax.random.split(key, num_starts), x, K)
        fit, start = jaxem.best(fits), starts[jnp.argmax(fits.free_energy)]
        mu = np.asarray(fit.theta["mu"])
        theirs = KMeans(K, init=np.asarray(start), n_init=1, max_iter=1000, tol=0.0).fit(np.asarray(x))
        row, picture = as_row(K, pixels, x, fit, mu)
        rows.append(
            row
            | {
                "unconverged": int(np.sum(np.asarray(fits.status) != jaxem.Status.CONVERGED)),
                "num_steps_all": np.asarray(fits.num_steps).tolist(),
                "scikit_learn_J": distortion(x, theirs.cluster_centers_),
            }
        )
        arrays |= {f"picture_{K}": picture}
    summary = {
        "size": SIZE,
        "num_pixels": len(x),
        "raw_bits": 24 * len(x),
        "true_colour_png_bits": 8 * len(true_colour_png(pixels)),
        "starts": num_starts,
        "rows": rows,
    }
    return Result(summary, claims(summary), arrays)


def distortion(x: jax.Array, mu: Any) -> float:
    """J in double precision, for a fair comparison."""
    difference = np.asarray(x, float)[:, None] - np.asarray(mu, float)[None]
    return float((difference**2).sum(axis=-1).min(axis=1).sum())


def as_row(K: int, pixels: np.ndarray, x: jax.Array, fit: jaxem.Fit, mu: np.ndarray) -> tuple[dict, np.ndarray]:
    """The numbers for K colours, and the picture in them; colours in the order of their share."""
    table = jaxem.responsibilities(gaussian.isotropic, fit.theta, x, temperature=0.0)
    labels = np.asarray(jnp.argmax(table, axis=1))
    order = np.argsort(-np.bincount(labels, minlength=K), kind="stable")
    labels, mu = np.argsort(order)[labels].reshape(pixels.shape[:2]), mu[order]
    palette = np.clip(np.rint(255 * mu), 0, 255).astype(np.uint8)
    picture, file = palette[labels], indexed_png(labels, palette)
    share = np.bincount(labels.ravel(), minlength=K) / labels.size
    decoded = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
    error = np.mean((picture.astype(float) - pixels) ** 2)
    row = {
        "K": K,
        "J": distortion(x, mu),
        "num_steps": int(fit.num_steps),
        "bits": bits(labels.size, K),
        "percent": 100 * bits(labels.size, K) / (24 * labels.size),
        "entropy_bits": 24 * K - labels.size * float(np.sum(share * np.log2(share, where=share > 0, out=0 * share))),
        "png_bits": 8 * len(file),
        "png_differs": int(np.sum(decoded != picture)),
        "psnr_db": float(10 * np.log10(255**2 / error)),
        "palette": palette.tolist(),
        "share": share.tolist(),
    }
    return row, picture


def claims(summary: dict[str, Any]) -> list[Claim]:
    rows = summary["rows"]

    def worst(name: str, statement: str, value: Any, bound: float) -> Claim:
        return Claim(name, statement, max(float(value(row)) for row in rows), bound)

    J = [row["J"] for row in rows]
    return [
        Claim("raw", "the slides' 1,036,800 bits: difference", abs(summary["raw_bits"] - RAW_BITS), 0.0),
        worst(
            "bits",
            "24K + N⌈log₂K⌉ is the slides' 43,248 / 86,472 / 173,040: difference",
            lambda row: abs(row["bits"] - SLIDES_BITS[row["K"]]),
            0.0,
        ),
        worst(
            "ratio",
            "4.2 / 8.3 / 16.7 %: difference after rounding",
            lambda row: abs(round(row["percent"], 1) - SLIDES_PERCENT[row["K"]]),
            0.0,
        ),
        worst("PNG", "the indexed PNG decodes to the same pixels: differing", lambda row: row["png_differs"], 0.0),
        worst("size", "… and is smaller: its bits / (24K + N⌈log₂K⌉)", lambda row: row["png_bits"] / row["bits"], 1.0),
        Claim("J", "more colours, less distortion: the largest J_next / J", max(np.divide(J[1:], J[:-1])), 1.0),
        worst(
            "peer",
            "scikit-learn's KMeans ends at the same J from the same start: relative difference",
            lambda row: abs(row["J"] / row["scikit_learn_J"] - 1),
            SAME,
        ),
        worst("end", "starts that did not converge", lambda row: row["unconverged"], 0.0),
    ]


def report(summary: dict[str, Any]) -> None:
    print(f"\n{summary['size'][0]} × {summary['size'][1]} pixels, {summary['raw_bits']:,} bits; ", end="")
    print(f"PNG in true colour {summary['true_colour_png_bits']:,}; best of {summary['starts']} starts")
    print(" K   24K+N⌈log₂K⌉        %   entropy code   indexed PNG   PSNR (dB)            J   steps")
    for row in summary["rows"]:
        print(
            f"{row['K']:2d} {row['bits']:14,} {row['percent']:8.1f} {row['entropy_bits']:14,.0f} {row['png_bits']:13,} "
            f"{row['psnr_db']:11.1f} {row['J']:12.2f} {row['num_steps']:7d}"
        )
    print()


def main(arguments: list[str] | None = None) -> int:
    return command("segmentation", __doc__, run, report, arguments, precision=32)


if __name__ == "__main__":
    leave(main())
