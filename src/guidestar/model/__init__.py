"""A trained model: its folder, its samples and the runs that make them."""
