"""Values of answers: one notation, then numbers, expressions, sets, times, choices and words that can be compared."""
