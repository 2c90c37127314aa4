"""Any NumPyro program with enumerable discrete latents, read, summed and maximised."""
