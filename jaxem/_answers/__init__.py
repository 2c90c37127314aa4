"""What a model or a fit says when asked."""
