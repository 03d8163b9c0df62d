"""Programs made of the library: demonstrations, measurements, strips."""
