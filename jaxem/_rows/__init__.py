"""How a sum over rows is taken, whatever is summed: in chunks, by products, by a GPU's kernel, over devices."""
