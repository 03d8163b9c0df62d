"""The core: levels, predictions, random streams, denoisers, passes and their evaluation."""
