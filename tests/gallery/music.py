"""Polyphonic music: hidden Markov models of NumPyro's and Pyro's examples."""

import jax.numpy as jnp
import numpyro
from numpyro import distributions as dist
from numpyro import handlers
from numpyro.contrib.control_flow import scan

from gallery.registry import J, draws, entry

EXAMPLE = "NumPyro example hmm_enum"
SEQUENCES = J(draws(5).integers(0, 2, (2, 4, 2)))  # sequences × time × tones
ENDS = J([4, 2])


def transitions(prior):
    """Rows of the transition matrix: a sticky prior, or none."""
    with handlers.mask(mask=prior):
        return numpyro.sample("probs_x", dist.Dirichlet(0.9 * jnp.eye(2) + 1.1).to_event(1))


def music(order, prior=True, mask_states=False):
    """Tones of each time step, given the state; order 2: and given the tone before."""

    def program(sequences, lengths):
        num_sequences, _, tones = sequences.shape
        probs_x = transitions(prior)
        shape = [2, tones] if order == 1 else [2, 2, tones]
        with handlers.mask(mask=prior):
            probs_y = numpyro.sample("probs_y", dist.Beta(1.1, 1.9).expand(shape).to_event(len(shape)))

        def step(carry, y):
            x_before, y_before, t = carry
            seen = (t < lengths)[:, None]
            with numpyro.plate("sequences", num_sequences, dim=-2):
                with handlers.mask(mask=seen if mask_states else True):
                    x = numpyro.sample("x", dist.Categorical(probs_x[x_before]))
                with numpyro.plate("tones", tones) as tone, handlers.mask(mask=seen):
                    probs = probs_y[x, tone] if order == 1 else probs_y[x, y_before, tone]
                    numpyro.sample("y", dist.Bernoulli(probs), obs=y)
            return (x, y, t + 1), None

        start = (jnp.zeros((num_sequences, 1), int), jnp.zeros((num_sequences, tones), int), 0)
        scan(step, start, jnp.swapaxes(sequences, 0, 1))

    which = {1: "Tones given the state", 2: "Tones given the state and the tone before"}[order]
    without = "" if prior else ", its priors switched off by a mask"
    masked = ", states masked after the end of a sequence" if mask_states else ""
    program.__doc__ = f"{which}{without}{masked}."
    return program


for order in (1, 2):
    entry(SEQUENCES, ENDS, source=EXAMPLE, closed="probs_x probs_y", name=f"music_{order}")(music(order))
    entry(SEQUENCES, ENDS, source=f"{EXAMPLE}, include_prior=False", name=f"music_{order}_without_prior", single=True)(
        music(order, prior=False)
    )
entry(SEQUENCES, ENDS, source=EXAMPLE, closed="probs_x probs_y", name="music_masked_states")(music(1, mask_states=True))


def two_chains(linked):
    def program(sequences):
        num_sequences, _, tones = sequences.shape
        probs_w = numpyro.sample("probs_w", dist.Dirichlet(0.9 * jnp.eye(2) + 1.1).to_event(1))
        shape = [2, 2] if linked else [2]
        probs_x = numpyro.sample("probs_x", dist.Dirichlet(0.9 * jnp.eye(2) + 1.1).expand(shape).to_event(len(shape)))
        probs_y = numpyro.sample("probs_y", dist.Beta(1.1, 1.9).expand([2, 2, tones]).to_event(3))

        def step(before, y):
            with numpyro.plate("sequences", num_sequences, dim=-2):
                w = numpyro.sample("w", dist.Categorical(probs_w[before[0]]))
                x = numpyro.sample("x", dist.Categorical(probs_x[w, before[1]] if linked else probs_x[before[1]]))
                with numpyro.plate("tones", tones) as tone:
                    numpyro.sample("y", dist.Bernoulli(probs_y[w, x, tone]), obs=y)
            return (w, x), None

        start = jnp.zeros((num_sequences, 1), int)
        scan(step, (start, start), jnp.swapaxes(sequences, 0, 1))

    program.__doc__ = f"Two hidden chains{', the second driven by the first' if linked else ' side by side'}."
    return program


for linked, name in ((False, "two_chains"), (True, "driven_chain")):
    entry(SEQUENCES[:1, :3], source=EXAMPLE, closed="probs_w probs_y", name=name)(two_chains(linked))
