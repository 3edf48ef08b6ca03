"""Does distillation help on this data? Paired runs over seeds, what they say together, and the pages that show it."""
