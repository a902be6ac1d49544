"""Plans: named recipes in order, a later one building on an earlier one's run."""
