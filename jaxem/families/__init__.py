"""The families: each a NumPyro program and the equations that make its EM exact and fast."""

from jaxem.families import gaussian as gaussian
