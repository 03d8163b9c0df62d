"""Students: networks that learn what guidance, or several steps of a solver, give."""
