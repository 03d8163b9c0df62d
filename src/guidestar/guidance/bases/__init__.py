"""What families of methods share: a contrast, a perturbed pass, a log-probability, a loss."""
