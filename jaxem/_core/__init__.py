"""What every model and every fit shares: the objective, the seam, and the door."""
