"""One process and its folder: knows nothing of what is learnt."""
