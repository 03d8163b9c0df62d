"""Build the data, networks and schedules that a recipe describes."""
