"""A mixture of products of Bernoullis completes handwritten digits: p(x_bottom | x_top).

    python experiments/digits.py [--seed S] [--out DIR] [--quick] [--no-plot]

scikit-learn's 1,797 digits, 8 × 8 pixels, 1 where the ink is over half. With B(x; p) = Π_d p_d^{x_d}(1 − p_d)^{1 − x_d}
the model is p(x) = Σ_k π_k B(x; p_k), and the conditional of what is hidden is a mixture again (eq:conditional),

    p(x_h | x_o) = Σ_k π_k(x_o) B(x_h; p_kh),    π_k(x_o) ∝ π_k B(x_o; p_ko)

so its weights must equal that product, computed the slow way, and its mean Σ_k π_k(x_o) p_kh. K = 20, fitted to 1,500
digits, the best of several k-means++ starts; the other 297 are held out and their lower half is hidden.

A pixel that no training digit of a component has would make a held-out digit impossible. So the fit is a maximum a
posteriori: a Beta(1 + a, 1 + a) on every p_kd is the same as 2K rows of weight a, one all ink and one without, whose
component is known, and `jaxem.em` takes weights and labels (it puts a Dirichlet(1 + 2a) on π besides).

The baseline knows each pixel's mean and nothing of the upper half. Log-losses are nats a hidden pixel, on held-out
digits.

Writes DIR/digits.json, .npz, .pdf and .png. Exits 0 when every claim holds, 1 when one fails, 2 for bad arguments.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

import jaxem
from jaxem import limits
from jaxem.families import bernoulli

from _command import Config, Result, command, leave
from _results import Claim

M = bernoulli.mixture
SIDE = 8
NUM_COMPONENTS = 20
NUM_TRAINING = 1_500
PSEUDO = 0.5  # a of the prior, in rows
NUM_STEPS = 60  # of the path whose F is checked
OBSERVED = np.arange(SIDE**2) < SIDE**2 // 2  # the upper half
BY_HAND = 25  # rows whose weights are computed the slow way


class Split(NamedTuple):
    """Binary digits and what they are."""

    train: np.ndarray  # (1500, 64)
    held_out: np.ndarray  # (297, 64)
    names: np.ndarray  # (297,) 0 … 9


def load_split(key: jax.Array) -> Split:
    bunch = load_digits()
    x = (bunch.data > 8).astype(float)  # the ink of a pixel is 0 … 16
    order = np.asarray(jax.random.permutation(key, len(x)))
    train, held_out = order[:NUM_TRAINING], order[NUM_TRAINING:]
    return Split(x[train], x[held_out], bunch.target[held_out])


class Training(NamedTuple):
    """Data with the prior as 2K rows of known component: what em takes."""

    x: jax.Array
    weights: jax.Array
    labels: jax.Array

    @classmethod
    def with_prior(cls, x: np.ndarray) -> "Training":
        rows, features = x.shape
        ones, known = jnp.ones((NUM_COMPONENTS, features)), jnp.arange(NUM_COMPONENTS)
        return cls(
            jnp.concatenate([jnp.asarray(x), ones, 0 * ones]),
            jnp.concatenate([jnp.ones(rows), jnp.full(2 * NUM_COMPONENTS, PSEUDO)]),
            jnp.concatenate([jnp.full(rows, -1), known, known]),
        )


def run(config: Config) -> Result:
    for_split, for_starts, for_samples = jax.random.split(jax.random.key(config.seed), 3)
    split = load_split(for_split)
    training = Training.with_prior(split.train)
    keys = jax.random.split(for_starts, 4 if config.quick else 24)
    x = jnp.asarray(split.train)
    starts = jax.vmap(lambda key: jaxem.inits.kmeans_plus_plus(M, key, x, NUM_COMPONENTS))(keys)
    known = {"weights": training.weights, "labels": training.labels}
    fits = jaxem.check(jaxem.em_batch(M, starts, training.x, tol=1e-8, **known))
    lane, theta = int(jnp.argmax(fits.free_energy)), jaxem.best(fits).theta
    start = jax.tree.map(lambda leaf: leaf[lane], starts)
    path = jaxem.em_path(M, start, training.x, num_steps=NUM_STEPS, **known)
    F = np.stack([path.after_e, path.after_m], axis=1).ravel()

    completed = jaxem.condition(M, theta, jnp.where(OBSERVED, split.held_out, np.nan), OBSERVED)
    draws = np.asarray(jax.lax.map(completed.sample, jax.random.split(for_samples, 50 if config.quick else 400)))
    marginal = training.weights[None] @ training.x / jnp.sum(training.weights)  # the same prior, one component
    losses = log_losses(theta, split.held_out, np.asarray(completed.mean), np.asarray(marginal)[0])
    summary = {
        "num_components": NUM_COMPONENTS,
        "num_training": NUM_TRAINING,
        "num_held_out": len(split.held_out),
        "starts": len(keys),
        "num_steps": int(fits.num_steps[lane]),
        "F": F,
        "F_starts": fits.free_energy,
        "pi": theta["pi"],
        **{name: float(loss.mean()) for name, loss in losses.items()},
    }
    by_hand = bayes_by_hand(theta, split.held_out[:BY_HAND])
    shown = np.array([np.flatnonzero(split.names == digit)[0] for digit in range(10)])
    arrays = {
        "probs": theta["probs"],
        "pi": theta["pi"],
        "names": split.names[shown],
        "original": split.held_out[shown],
        "mean": completed.mean[shown],
        "sample": draws[0][shown],
        "F": F,
    }
    verdicts = claims(F, losses, completed, by_hand, draws)
    return Result(summary, verdicts, {name: np.asarray(array) for name, array in arrays.items()})


def log_losses(theta: Any, x: np.ndarray, mean: np.ndarray, marginal: np.ndarray) -> dict[str, np.ndarray]:
    """Nats a hidden pixel, for each held-out digit."""
    hidden = x[:, ~OBSERVED]
    baseline = np.broadcast_to(marginal[~OBSERVED], hidden.shape)
    top = {"pi": theta["pi"], "probs": theta["probs"][:, OBSERVED]}
    joint = jax.nn.logsumexp(jaxem.log_joint(M, theta, x), axis=1)
    joint -= jax.nn.logsumexp(jaxem.log_joint(M, top, x[:, OBSERVED]), axis=1)

    def bernoulli_loss(p: np.ndarray) -> np.ndarray:
        return -np.mean(np.where(hidden == 1, np.log(p), np.log1p(-p)), axis=1)

    return {
        "loss_baseline": bernoulli_loss(baseline),
        "loss_mean": bernoulli_loss(mean),  # pixel by pixel, from the conditional mean
        "loss_joint": -np.asarray(joint) / hidden.shape[1],  # the lower half as a whole, −log p(x_h | x_o)
    }


def bayes_by_hand(theta: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights and mean by Bayes' rule on plain products of probabilities, one digit and one component at a time."""
    pi, probs = np.asarray(theta["pi"]), np.asarray(theta["probs"])
    weights = np.zeros((len(x), len(pi)))
    for n, row in enumerate(x):
        for k, p in enumerate(probs):
            weights[n, k] = pi[k]
            for d in np.flatnonzero(OBSERVED):
                weights[n, k] *= p[d] if row[d] == 1 else 1 - p[d]
        weights[n] /= weights[n].sum()
    return weights, weights @ probs[:, ~OBSERVED]


def claims(
    F: np.ndarray, losses: dict[str, np.ndarray], completed: Any, by_hand: Any, draws: np.ndarray
) -> list[Claim]:
    eps = float(np.finfo(float).eps)
    weights, mean = by_hand
    rounding = limits.ROUNDING * eps * OBSERVED.sum()  # a product of that many factors
    rows = slice(len(weights))

    def beats(name: str, statement: str, loss: np.ndarray) -> Claim:
        gain = losses["loss_baseline"] - loss
        error = gain.std(ddof=1) / np.sqrt(len(gain))
        return Claim(name, f"{statement} (gain {gain.mean():.3f} ± {error:.3f})", loss.mean() + 5 * error,
                     losses["loss_baseline"].mean())  # fmt: skip

    variance = np.asarray(completed.mean * (1 - completed.mean))
    deviation = (draws - np.asarray(completed.mean)).sum(axis=(0, 1)) / np.sqrt(len(draws) * variance.sum(axis=0))
    pi_error = np.abs(np.asarray(completed.pi)[rows] - weights).max()
    mean_error = np.abs(np.asarray(completed.mean)[rows] - mean).max()
    return [
        Claim(
            "C2", "neither half-step of EM lowers F (nats)", -np.diff(F).min(), limits.ROUNDING * eps * np.abs(F).max()
        ),
        Claim("Bayes", "condition's weights are Bayes' rule, computed product by product", pi_error, rounding),
        Claim("mean", "… and its mean is Σ π_k(x_o) p_kh", mean_error, rounding),
        beats("loss", "log-loss of the conditional mean + 5 s.e. ≤ that of the marginal mean", losses["loss_mean"]),
        beats("joint", "log-loss of the lower half as a whole + 5 s.e. ≤ the same", losses["loss_joint"]),
        Claim(
            "draws", "samples have the conditional mean: a pixel's |deviation|, in s.d.", np.abs(deviation).max(), 5.0
        ),
    ]


def report(summary: dict[str, Any]) -> None:
    F = np.asarray(summary["F_starts"])
    print(
        f"\nK = {summary['num_components']}, {summary['num_training']} digits, best of {summary['starts']} starts: ",
        end="",
    )
    print(f"F = {F.max():.2f} (worst {F.min():.2f}) in {summary['num_steps']} steps")
    print(f"nats a hidden pixel on {summary['num_held_out']} held-out digits: marginal mean ", end="")
    print(f"{summary['loss_baseline']:.4f}, conditional mean {summary['loss_mean']:.4f}, ", end="")
    print(f"the lower half as a whole {summary['loss_joint']:.4f}\n")


def main(arguments: list[str] | None = None) -> int:
    return command("digits", __doc__, run, report, arguments)


if __name__ == "__main__":
    leave(main())
